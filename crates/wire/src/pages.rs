//! Monitor ↔ page server: a VM that was saved, or copied, and whose memory comes as it is touched.
//!
//! A monitor has [several connections](crate::control::PAGES_CONNECTIONS), each of which carries a request and what answers
//! it in turn: [frames](crate::frame), some with bytes behind them. Monitor and server are started by one daemon and one
//! build, so there is no version here.

use crate::api::Bucket;
use crate::frame;
use crate::saved::{MAX_PAGES_AT_ONCE, MAX_STATE_BYTES, Machine, PAGE_BYTES};
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};

/// The most runs of a working set: as many as a pager records.
pub const MAX_EXPECTED: usize = 1 << 16;
/// The most runs of pages that are not zero: with those of a working set they fit into a frame.
pub const MAX_HELD: usize = 1 << 14;
/// The most pages of one request: what a pager asks for at most.
pub const MAX_PAGES: u32 = 512;

/// What the daemon sends a page server on its standard input, a `SOCK_SEQPACKET` socket: one packet, with the server's
/// ends of a monitor's connections as descriptors, the one where it will be asked what there is first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serve {
    /// How many come.
    pub connections: u32,
    /// Where the checkpoint is, if the store does not have it: that is a cache then, and nothing else.
    pub remote: Option<Remote>,
}

/// A bucket that a checkpoint is read from while its VM runs. It comes in the packet because it has keys in it, and
/// everybody on this computer can read arguments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remote {
    /// Which, and as whom.
    pub bucket: Bucket,
    /// How much of what is fetched the cache may keep, in bytes.
    pub cache_bytes: u64,
}

/// How many of a monitor's connections, the first ones, are for what its guest waits for. The others are for the rest, and
/// give way to everything else on the host.
pub const fn urgent(connections: usize) -> usize {
    connections.div_ceil(2)
}

/// What the monitor asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// What there is. Answer: [`Answer::Described`].
    Describe,
    /// Runs of pages of RAM, `(first, pages)`, at most [`MAX_PAGES`] together. Answers: [`Answer::Pages`] for each of them,
    /// in their order, as soon as it can be given; behind another answer comes none.
    Memory(Vec<(u32, u32)>),
    /// The next blocks of the disk that are not what the base says, at this one or behind. Answer: [`Answer::Blocks`].
    Disk(u64),
    /// A turn to fetch what nobody waits for: one VM of a store has one at a time. It lasts until [`Ask::EndTurn`], or the
    /// connection's end. Answer: [`Answer::Turn`], when it begins.
    BeginTurn,
    /// No answer.
    EndTurn,
    /// The pages that the guest waited for, in this order: runs `(first, pages)`. Answer: [`Answer::Noted`].
    Recorded(Vec<(u32, u32)>),
}

/// What the server answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// So much there is. As many bytes of the machine's state as it says follow.
    Described(Description),
    /// All that was asked for, in runs. The bytes of those with bytes follow.
    Pages(Vec<Run>),
    /// So many blocks, at most [`MAX_PAGES_AT_ONCE`], from the first on, whose bytes follow. None where there are no more.
    Blocks(u64, u32),
    /// The turn begins.
    Turn,
    /// It is kept for the next time.
    Noted,
    /// It cannot be had, now or later. The error and its causes, outermost first.
    Lost(Vec<String>),
}

/// What there is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Who can go on with the state.
    pub machine: Machine,
    /// How long the state is, in bytes.
    pub state_bytes: u32,
    /// The length of the RAM, in pages of guest-physical addresses.
    pub memory_pages: u64,
    /// The length of the disk, in blocks of 4096 bytes.
    pub disk_pages: u64,
    /// How many pages are read at once, at multiples of that: a power of two.
    pub chunk_pages: u32,
    /// Runs of pages of RAM, in order, at most [`MAX_HELD`]: all others are zero, and need not be asked for.
    pub held: Vec<(u32, u32)>,
    /// What an earlier monitor [recorded](Ask::Recorded).
    pub expected: Vec<(u32, u32)>,
}

/// Pages that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// How many.
    pub pages: u32,
    /// Whether they have bytes; else they are zeroes.
    pub is_data: bool,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The server is gone, or does not answer.
    #[error("the page server does not answer")]
    Connection(#[from] io::Error),
    /// What it answers is not what was asked for.
    #[error("the page server gives another answer than was asked for")]
    Answer,
    /// It says that it cannot.
    #[error("{}", .0.join(": "))]
    Lost(Vec<String>),
}

/// The monitor's end of a connection. After an error, nothing more can be asked on it.
#[derive(Debug)]
pub struct Client<S>(S);

impl<S: Read + Write> Client<S> {
    /// Asks on `stream`.
    pub fn new(stream: S) -> Self {
        Self(stream)
    }

    /// The stream itself.
    pub fn into_stream(self) -> S {
        self.0
    }

    /// The stream below.
    pub fn stream(&self) -> &S {
        &self.0
    }

    /// What there is, and the machine's state.
    pub fn describe(&mut self) -> Result<(Description, Vec<u8>), AskError> {
        let Answer::Described(description) = self.ask(&Ask::Describe)? else { return Err(AskError::Answer) };
        let Description { state_bytes, chunk_pages, held, expected, .. } = &description;
        let is_possible = *state_bytes as usize <= MAX_STATE_BYTES
            && chunk_pages.is_power_of_two()
            && *chunk_pages <= MAX_PAGES
            && held.len() <= MAX_HELD
            && expected.len() <= MAX_EXPECTED;
        if !is_possible {
            return Err(AskError::Answer);
        }
        let mut state = vec![0; *state_bytes as usize];
        self.0.read_exact(&mut state)?;
        Ok((description, state))
    }

    /// Asks for runs of pages of RAM. What answers is then to be read: [`pages`](Client::pages) for each of them.
    pub fn memory(&mut self, runs: &[(u32, u32)]) -> Result<(), AskError> {
        Ok(frame::write(&mut self.0, &Ask::Memory(runs.to_vec()))?)
    }

    /// The next run of pages that was asked for, which are so many: of what kind they are. The bytes of each run that has
    /// some are then to be [read](Client::read).
    pub fn pages(&mut self, pages: u32) -> Result<Vec<Run>, AskError> {
        let Answer::Pages(runs) = self.answer()? else { return Err(AskError::Answer) };
        let got = runs.iter().try_fold(0u32, |got, run| got.checked_add(run.pages));
        if got != Some(pages) {
            return Err(AskError::Answer);
        }
        Ok(runs)
    }

    /// Fills `bytes` with the next bytes behind an answer.
    pub fn read(&mut self, bytes: &mut [u8]) -> Result<(), AskError> {
        Ok(self.0.read_exact(bytes)?)
    }

    /// The next blocks of the disk from `first` on, into `bytes`, and which is the first of them. `None` when there are
    /// no more.
    pub fn disk(&mut self, first: u64, bytes: &mut Vec<u8>) -> Result<Option<u64>, AskError> {
        let Answer::Blocks(at, blocks) = self.ask(&Ask::Disk(first))? else { return Err(AskError::Answer) };
        if at < first || blocks > MAX_PAGES_AT_ONCE {
            return Err(AskError::Answer);
        }
        bytes.resize(blocks as usize * PAGE_BYTES, 0);
        self.0.read_exact(bytes)?;
        Ok((blocks > 0).then_some(at))
    }

    /// Hands over what the guest waited for.
    pub fn record(&mut self, recorded: Vec<(u32, u32)>) -> Result<(), AskError> {
        match self.ask(&Ask::Recorded(recorded))? {
            Answer::Noted => Ok(()),
            _ => Err(AskError::Answer),
        }
    }

    /// Waits for a turn to fetch what nobody waits for.
    pub fn begin_turn(&mut self) -> Result<(), AskError> {
        match self.ask(&Ask::BeginTurn)? {
            Answer::Turn => Ok(()),
            _ => Err(AskError::Answer),
        }
    }

    /// Ends it.
    pub fn end_turn(&mut self) -> Result<(), AskError> {
        Ok(frame::write(&mut self.0, &Ask::EndTurn)?)
    }

    fn ask(&mut self, ask: &Ask) -> Result<Answer, AskError> {
        frame::write(&mut self.0, ask)?;
        self.answer()
    }

    fn answer(&mut self) -> Result<Answer, AskError> {
        match frame::read(&mut self.0)? {
            Some(Answer::Lost(chain)) => Err(AskError::Lost(chain)),
            Some(answer) => Ok(answer),
            None => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        }
    }
}

/// The server's end of a connection.
#[derive(Debug)]
pub struct Server<S>(S);

impl<S: Read + Write> Server<S> {
    /// Is asked on `stream`.
    pub fn new(stream: S) -> Self {
        Self(stream)
    }

    /// The stream below.
    pub fn stream(&self) -> &S {
        &self.0
    }

    /// What the monitor asks next. `None` when it asks no more.
    pub fn asked(&mut self) -> io::Result<Option<Ask>> {
        frame::read(&mut self.0)
    }

    /// Gives an answer, and the bytes behind it.
    pub fn give(&mut self, answer: &Answer, bytes: &[u8]) -> io::Result<()> {
        // In one piece: whoever waits for it is woken once.
        let mut whole = frame::encode(answer)?;
        whole.extend_from_slice(bytes);
        self.0.write_all(&whole)
    }
}

/// Runs of pages, given in order, as at most [`MAX_HELD`] of them: gaps between them are passed over, as small as it takes.
pub fn covering(runs: &[(u32, u32)]) -> Vec<(u32, u32)> {
    let mut gaps = (0..=u32::BITS).map(|size| 1 << size);
    gaps.find_map(|gap: u64| Some(joined(runs, gap)).filter(|runs| runs.len() <= MAX_HELD)).unwrap_or_default()
}

/// The same runs, those with less than `gap` pages between them as one.
fn joined(runs: &[(u32, u32)], gap: u64) -> Vec<(u32, u32)> {
    let mut joined: Vec<(u32, u32)> = Vec::new();
    for &(first, pages) in runs {
        match joined.last_mut().filter(|last| u64::from(first.saturating_sub(last.0 + last.1)) < gap) {
            Some(last) => last.1 = first + pages - last.0,
            None => joined.push((first, pages)),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    /// A server that gives one answer, whatever it is asked.
    struct Says(Cursor<Vec<u8>>);

    impl Read for Says {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(buffer)
        }
    }

    impl Write for Says {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn saying(answer: &Answer, bytes: &[u8]) -> Client<Says> {
        Client::new(Says(Cursor::new([frame::encode(answer).unwrap(), bytes.to_vec()].concat())))
    }

    fn description() -> Description {
        let machine = Machine { kind: "k".into(), version: 1, arch: "a".into(), cpu_features: Vec::new() };
        let (held, expected) = (vec![(0, 3)], vec![(1, 2)]);
        Description { machine, state_bytes: 3, memory_pages: 8, disk_pages: 4, chunk_pages: 4, held, expected }
    }

    #[test]
    fn what_was_asked_for_is_what_comes() {
        let described = Answer::Described(description());
        assert_eq!(saying(&described, b"abc").describe().unwrap(), (description(), b"abc".to_vec()));
        let runs = vec![Run { pages: 2, is_data: false }, Run { pages: 1, is_data: true }];
        let mut client = saying(&Answer::Pages(runs.clone()), &[7; PAGE_BYTES]);
        let mut page = [0; PAGE_BYTES];
        client.memory(&[(5, 3)]).unwrap();
        assert_eq!(client.pages(3).unwrap(), runs);
        client.read(&mut page).unwrap();
        assert_eq!(page, [7; PAGE_BYTES]);
        let mut bytes = Vec::new();
        assert_eq!(saying(&Answer::Blocks(9, 1), &page).disk(3, &mut bytes).unwrap(), Some(9));
        assert_eq!(bytes, page);
        assert_eq!(saying(&Answer::Blocks(3, 0), &[]).disk(3, &mut bytes).unwrap(), None);
        saying(&Answer::Noted, &[]).record(vec![(1, 1)]).unwrap();
    }

    #[test]
    fn an_answer_that_cannot_be_is_refused_before_anything_is_believed() {
        let run = |pages| Run { pages, is_data: true };
        for runs in [vec![], vec![run(1)], vec![run(3)], vec![run(u32::MAX), run(3)]] {
            assert!(matches!(saying(&Answer::Pages(runs), &[]).pages(2), Err(AskError::Answer)));
        }
        for described in [
            Description { state_bytes: u32::MAX, ..description() },
            Description { chunk_pages: 3, ..description() },
            Description { chunk_pages: 0, ..description() },
            Description { chunk_pages: 1 << 10, ..description() },
            Description { held: vec![(0, 1); MAX_HELD + 1], ..description() },
        ] {
            assert!(matches!(saying(&Answer::Described(described), b"abc").describe(), Err(AskError::Answer)));
        }
        for (at, blocks) in [(2, 1), (3, MAX_PAGES_AT_ONCE + 1)] {
            let bytes = saying(&Answer::Blocks(at, blocks), &[]).disk(3, &mut Vec::new());
            assert!(matches!(bytes, Err(AskError::Answer)));
        }
        assert!(matches!(saying(&Answer::Noted, &[]).describe(), Err(AskError::Answer)));
    }

    #[test]
    fn what_is_asked_comes_to_the_server_and_its_answer_in_one_piece() {
        let (client, server) = std::os::unix::net::UnixStream::pair().unwrap();
        let (mut client, mut server) = (Client::new(client), Server::new(server));
        client.memory(&[(5, 1)]).unwrap();
        assert_eq!(server.asked().unwrap(), Some(Ask::Memory(vec![(5, 1)])));
        let run = Run { pages: 1, is_data: true };
        server.give(&Answer::Pages(vec![run]), &[7; PAGE_BYTES]).unwrap();
        let mut page = [0; PAGE_BYTES];
        assert_eq!(client.pages(1).unwrap(), [run]);
        client.read(&mut page).unwrap();
        assert_eq!(page, [7; PAGE_BYTES]);
        drop(client);
        assert_eq!(server.asked().unwrap(), None);
    }

    #[test]
    fn runs_are_as_many_as_can_be_told_and_no_page_of_theirs_is_left_out() {
        assert_eq!(covering(&[]), []);
        assert_eq!(covering(&[(0, 2), (2, 3), (7, 1)]), [(0, 5), (7, 1)]);
        let every = |count: u32, every: u32| (0..count).map(|at| (at * every, 1)).collect::<Vec<_>>();
        let most = MAX_HELD as u32;
        assert_eq!(covering(&every(most, 9)), every(most, 9), "no coarser than it must be");
        let covered = covering(&every(most + 1, 9));
        assert_eq!(covered, [(0, most * 9 + 1)]);
        let mut uneven = every(most, 2);
        uneven.push((most * 9, 4));
        assert_eq!(covering(&uneven), [(0, most * 2 - 1), (most * 9, 4)]);
        assert_eq!(covering(&[(0, 1), (u32::MAX - 1, 1)]), [(0, 1), (u32::MAX - 1, 1)]);
    }

    #[test]
    fn a_server_that_is_gone_or_has_lost_pages_is_an_error() {
        let mut gone = Client::new(Says(Cursor::default()));
        assert!(matches!(gone.describe(), Err(AskError::Connection(_))));
        let lost = saying(&Answer::Lost(vec!["no".into(), "because".into()]), &[]).pages(1).unwrap_err();
        assert_eq!(lost.to_string(), "no: because");
    }
}
