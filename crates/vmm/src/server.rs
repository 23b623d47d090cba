//! The monitor's end of a page server: where the memory of a VM comes from that was saved, and the blocks of its disk.

use crate::complaints::{chain, say};
use crate::gate::lock;
use crate::owner::{Event, Events};
use pando_disk::{BLOCK_BYTES, Disk, FlushError, WriteError};
use pando_memory::pager::{End, FetchError, Fetched, PageSource, Pager, Stats, Wanted};
use pando_wire::pages::{self, AskError, Client};
use pando_wire::saved::PAGE_BYTES;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

/// How long the server may take to note what the guest waited for: it is only a hint.
const NOTE_LIMIT: Duration = Duration::from_secs(1);
/// How long the owner has to end the VM when its memory is lost. It may itself wait for a page of it.
const END_LIMIT: Duration = Duration::from_secs(2);

/// The variable whose presence in the environment has the log say how long the guest waited for its memory.
const TELL: &str = "PANDO_TELL_WAITS";

/// A connection that can be closed while somebody waits on it.
#[derive(Debug, Clone)]
struct Stream(Arc<UnixStream>);

/// One connection, and who uses it now.
struct Lane {
    client: Mutex<Client<Stream>>,
    stream: Stream,
}

/// The connections to a page server: some for what the guest waits for, some for the rest.
pub(crate) struct PageServer {
    urgent: Vec<Lane>,
    others: Vec<Lane>,
    /// Where a turn is asked for, if there is a connection left for that.
    turns: Option<Lane>,
    chunk_pages: u32,
}

/// Why the disk was not filled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FillError {
    /// The server.
    #[error("cannot fetch the disk's blocks")]
    Fetch(#[from] AskError),
    /// The disk.
    #[error("cannot write the disk's blocks")]
    Write(#[from] WriteError),
    /// The disk, in the end.
    #[error("cannot make the disk's blocks durable")]
    Flush(#[from] FlushError),
}

impl PageServer {
    /// Over `clients`, at least two, of which it reads `chunk_pages` at once.
    pub(crate) fn new(clients: Vec<Client<UnixStream>>, chunk_pages: u32) -> Self {
        let mut urgent: Vec<_> = clients.into_iter().map(Lane::new).collect();
        let mut others = urgent.split_off(pages::urgent(urgent.len()));
        let turns = if others.len() > 1 { others.pop() } else { None };
        Self { urgent, others, turns, chunk_pages }
    }

    /// A connection that is free, or that will be.
    fn lane(&self, is_urgent: bool) -> MutexGuard<'_, Client<Stream>> {
        let lanes = if is_urgent { &self.urgent } else { &self.others };
        lanes.iter().find_map(|lane| lane.client.try_lock().ok()).unwrap_or_else(|| lock(&lanes[0].client))
    }

    /// Writes all blocks that the server has to a new disk, durably: its guest believes that they are.
    pub(crate) fn fill(&self, disk: &mut Disk) -> Result<(), FillError> {
        // Nothing runs yet that would wait for a page, while the others are taken again and again.
        let mut client = self.lane(true);
        let (mut next, mut bytes) = (0, Vec::new());
        while let Some(first) = client.disk(next, &mut bytes)? {
            disk.write_at(first.saturating_mul(BLOCK_BYTES), &bytes)?;
            next = first + (bytes.len() / PAGE_BYTES) as u64; // `write_at` has found it to be on the disk.
        }
        Ok(disk.flush()?)
    }
}

impl Lane {
    fn new(client: Client<UnixStream>) -> Self {
        let stream = Stream(Arc::new(client.into_stream()));
        Self { client: Mutex::new(Client::new(stream.clone())), stream }
    }
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        (&*self.0).read(bytes)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self.0).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        (&*self.0).flush()
    }
}

/// A page server as a source of pages. Whatever goes wrong is final: there is no other server to ask.
pub(crate) struct Source(pub(crate) Arc<PageServer>);

impl PageSource for Source {
    fn chunk_pages(&self) -> u32 {
        self.0.chunk_pages
    }

    fn fetch(&self, wanted: &Wanted, fetched: &mut Fetched) -> Result<(), FetchError> {
        self.fetch_each(std::slice::from_ref(wanted), fetched, &mut |_| ())
    }

    fn fetch_each(
        &self,
        wanted: &[Wanted],
        fetched: &mut Fetched,
        arrived: &mut dyn FnMut(&mut Fetched),
    ) -> Result<(), FetchError> {
        let lost = |error: AskError| FetchError::Final(error.into());
        let mut client = self.0.lane(wanted.iter().any(|wanted| wanted.is_urgent));
        let pages = |wanted: &Wanted| wanted.pages.len() as u32;
        let runs: Vec<_> = wanted.iter().map(|wanted| (wanted.pages.start, pages(wanted))).collect();
        client.memory(&runs).map_err(lost)?;
        for wanted in wanted {
            for run in client.pages(pages(wanted)).map_err(lost)? {
                match run.is_data {
                    true => client.read(fetched.data(run.pages)?).map_err(lost)?,
                    false => fetched.zeroes(run.pages)?,
                }
            }
            arrived(fetched);
        }
        Ok(())
    }

    fn begin_turn(&self) {
        if let Some(turns) = &self.0.turns {
            // A server that does not answer is asked for pages all the same, and what goes wrong then is told.
            let _ = lock(&turns.client).begin_turn();
        }
    }

    fn end_turn(&self) {
        if let Some(turns) = &self.0.turns {
            let _ = lock(&turns.client).end_turn();
        }
    }
}

/// Memory that is on its way, or was.
pub(crate) struct Arriving {
    pub(crate) pager: Pager,
    pub(crate) server: Arc<PageServer>,
}

impl Arriving {
    /// Whether pages are missing.
    pub(crate) fn is_incomplete(&self) -> bool {
        self.pager.missing_pages() > 0
    }

    /// Has the rest come as fast as it can. Whether there is a rest.
    pub(crate) fn hurry(&self) -> bool {
        self.pager.hurry();
        self.is_incomplete()
    }

    /// Everything is there: tells the server what the guest waited for, so that it need not the next time, and lets the
    /// server go.
    pub(crate) fn finish(&self) {
        let recorded = self.pager.recorded();
        if !recorded.is_empty() {
            let mut client = self.server.lane(true);
            let stream = &client.stream().0;
            let is_limited =
                stream.set_read_timeout(Some(NOTE_LIMIT)).is_ok() && stream.set_write_timeout(Some(NOTE_LIMIT)).is_ok();
            // Without it, the next one waits as this one did.
            let _ = is_limited && client.record(recorded).is_ok();
        }
        for lane in self.server.urgent.iter().chain(&self.server.others).chain(&self.server.turns) {
            // It may be gone by itself. And who waits on it for a turn, and who for pages that were discarded, need none.
            let _ = lane.stream.0.shutdown(Shutdown::Both);
        }
        // Only for who measures: a guest's console is the guest's.
        if std::env::var_os(TELL).is_some() {
            say(&told(&self.pager.stats()));
        }
    }
}

/// What the guest waited for, as `make bench` reads it from the log.
fn told(stats: &Stats) -> String {
    let Stats { faults, faulted_pages, prefetched_pages, filled_pages, zero_pages, fetches, latency, .. } = stats;
    let [p50, p99] = [50, 99].map(|percent| latency.percentile(percent).as_micros());
    format!(
        "all memory is there: {faults} waits, {p50} µs p50, {p99} µs p99; pages that came: {faulted_pages} waited for or \
         beside, {prefetched_pages} expected, {filled_pages} others, {zero_pages} of them zero; in {fetches} requests"
    )
}

/// Tells the owner how the pager ended. Where memory is lost, the owner may be one of those who wait for it, for ever: so
/// if it does not end the process soon, this does.
pub(crate) fn tell(end: End, events: &Events) {
    let error = match end {
        End::Complete(_) => return events.send(Event::MemoryIsThere),
        End::Failed(error) => error,
    };
    let lines = chain(&error);
    events.send(Event::MemoryIsLost(lines.join(": ")));
    let end = move || {
        thread::sleep(END_LIMIT);
        say(&format!("error: the guest cannot go on\n  because: {}", lines.join("\n  because: ")));
        std::process::exit(1)
    };
    if pando_sys::spawn("memory-is-lost", end).is_err() {
        std::process::exit(1);
    }
}
