//! What a checkpoint answers.

use super::serve::Answers;
use crate::failure::Failure;
use pando_daemon::bucket_spec;
use pando_store::{
    Bucket, BucketSpec, Checkpoint, Layer, Manifest, OpenCheckpoint, PAGE_BYTES, Page, ReadError, Store, Turns,
};
use pando_wire::pages::{Answer, Ask, Description, MAX_EXPECTED, MAX_PAGES, Remote, Run, covering};
use pando_wire::saved::{MAX_PAGES_AT_ONCE, Machine};
use std::error::Error;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long a bucket's server may take for one request.
const BUCKET_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may be away. Both together are less than the 30 s after which a monitor gives up by itself, and does not know
/// what was wrong with the bucket.
const BUCKET_PATIENCE: Duration = Duration::from_secs(12);

/// A checkpoint that is served. Any number of threads may ask.
pub(super) struct Served {
    store: Store,
    turns: Turns,
    open: OpenCheckpoint,
    memory: Layer,
    /// None of a VM that sleeps and whose disk stayed where it was.
    disk: Option<Layer>,
    /// What is wanted first: what was noted, and what is being noted.
    expected: Mutex<Vec<(u32, u32)>>,
}

impl Served {
    /// Opens checkpoint `name` of a store, or one that is in a bucket, with the store as a cache.
    pub(super) fn open(store: &Path, name: &str, remote: Option<Remote>) -> Result<Self, Failure> {
        let (store, open) = match remote {
            None => {
                let store = Store::open(store)?;
                let open = store.open_checkpoint(name)?;
                (store, open)
            }
            Some(remote) => {
                let store = Store::create(store)?;
                let open = attach(&store, name, remote)?;
                (store, open)
            }
        };
        let Checkpoint { disks, .. } = open.checkpoint();
        let (memory, disk) = match (open.memory()?, &disks[..]) {
            (Some(memory), [disk]) => (memory, Some(open.layer(*disk)?)),
            (Some(memory), []) => (memory, None),
            _ => return Err(Failure::new("it is not a machine with memory and at most one disk")),
        };
        let expected = expected(&store, &memory);
        Ok(Self { turns: store.turns(), store, open, memory, disk, expected: Mutex::new(expected) })
    }

    /// Gives the answers to a request.
    pub(super) fn answer(&self, ask: &Ask, answers: &mut Answers) -> io::Result<()> {
        match ask {
            Ask::Describe => give(answers, |bytes| Ok(self.describe(bytes))).map(drop),
            Ask::Memory(runs) => self.memory(runs, answers),
            Ask::Disk(first) => give(answers, |bytes| self.disk(*first, bytes)).map(drop),
            Ask::BeginTurn => answers.begin_turn(&self.turns),
            Ask::EndTurn => {
                answers.end_turn();
                Ok(())
            }
            Ask::Recorded(runs) => {
                self.note(runs);
                answers.give(&Answer::Noted, &[])
            }
        }
    }

    fn describe(&self, bytes: &mut Vec<u8>) -> Answer {
        let machine = &self.open.checkpoint().machine;
        bytes.extend_from_slice(&machine.state);
        let chunk_pages = self.memory.manifest().chunk_pages();
        Answer::Described(Description {
            machine: Machine {
                kind: machine.kind.clone(),
                version: machine.version,
                arch: machine.arch.clone(),
                cpu_features: machine.cpu_features.clone(),
            },
            state_bytes: u32::try_from(machine.state.len()).unwrap_or(u32::MAX), // Which nobody believes.
            memory_pages: self.memory.pages(),
            disk_pages: self.disk.as_ref().map_or(0, Layer::pages),
            // Others are possible, and then read as they come.
            chunk_pages: if chunk_pages.is_power_of_two() { chunk_pages } else { 1 },
            held: held(self.memory.manifest()),
            expected: self.expected.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        })
    }

    /// Each run as soon as it is read, and nothing behind one that is lost.
    fn memory(&self, runs: &[(u32, u32)], answers: &mut Answers) -> io::Result<()> {
        let mut left = MAX_PAGES;
        for (first, pages) in runs {
            let pages = left.min(*pages);
            left -= pages;
            if !give(answers, |bytes| self.run(*first, pages, bytes))? {
                break;
            }
        }
        Ok(())
    }

    fn run(&self, first: u32, pages: u32, bytes: &mut Vec<u8>) -> Result<Answer, ReadError> {
        let mut runs: Vec<Run> = Vec::new();
        self.memory.read_pages(range((first, pages)), |what, pages, data| {
            bytes.extend_from_slice(data);
            let is_data = what == Page::Data;
            match runs.last_mut().filter(|run| run.is_data == is_data) {
                Some(run) => run.pages += pages,
                None => runs.push(Run { pages, is_data }),
            }
        })?;
        Ok(Answer::Pages(runs))
    }

    fn disk(&self, first: u64, bytes: &mut Vec<u8>) -> Result<Answer, ReadError> {
        let held = self.disk.as_ref().and_then(|disk| Some((disk, next_held(disk, first)?)));
        let Some((disk, first)) = held else { return Ok(Answer::Blocks(first, 0)) };
        let most = (first + u64::from(MAX_PAGES_AT_ONCE)).min(disk.pages());
        let is_held = |block: &u64| disk.page(*block).is_ok_and(|what| what != Page::Absent);
        let blocks = (first..most).take_while(is_held).count() as u32;
        disk.read_pages(first..first + u64::from(blocks), |what, blocks, data| match what {
            Page::Data => bytes.extend_from_slice(data),
            Page::Zero | Page::Absent => bytes.resize(bytes.len() + blocks as usize * PAGE_BYTES, 0),
        })?;
        Ok(Answer::Blocks(first, blocks))
    }

    /// Notes pages behind those that were noted before. They are a hint, so nobody is told where that fails.
    fn note(&self, runs: &[(u32, u32)]) {
        let mut expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        expected.extend_from_slice(runs);
        expected.truncate(MAX_EXPECTED);
        let pages: Vec<_> = expected.iter().map(|run| range(*run)).collect();
        let _ = self.store.note_working_set(self.memory.id(), &pages);
    }
}

/// Gives an answer with bytes behind it, or the reason why there is none. Whether it is the answer.
fn give(answers: &mut Answers, answer: impl FnOnce(&mut Vec<u8>) -> Result<Answer, ReadError>) -> io::Result<bool> {
    let mut bytes = Vec::new();
    match answer(&mut bytes) {
        Ok(answer) => answers.give(&answer, &bytes).map(|()| true),
        Err(error) => answers.give(&Answer::Lost(chain(&error)), &[]).map(|()| false),
    }
}

/// Opens a checkpoint that is in a bucket.
fn attach(store: &Store, name: &str, remote: Remote) -> Result<OpenCheckpoint, Failure> {
    let Remote { bucket, cache_bytes } = remote;
    let spec = BucketSpec { timeout: BUCKET_TIMEOUT, patience: BUCKET_PATIENCE, ..bucket_spec(bucket)? };
    Ok(store.attach_as_cache(&Bucket::new(&spec)?, name, cache_bytes)?)
}

/// The first page at or behind `from` that a layer says something about.
fn next_held(layer: &Layer, from: u64) -> Option<u64> {
    let chunk_pages = u64::from(layer.manifest().chunk_pages());
    let spans = layer.manifest().spans();
    let begin = spans.partition_point(|span| (span.index + 1) * chunk_pages <= from);
    spans[begin..].iter().find_map(|span| {
        let mut held = (0..chunk_pages).filter(|bit| span.held >> bit & 1 == 1);
        held.find_map(|bit| Some(span.index * chunk_pages + bit).filter(|page| from <= *page))
    })
}

/// Runs of pages outside of which there are only zeroes, as few as can be told: the chunks with data.
fn held(memory: &Manifest) -> Vec<(u32, u32)> {
    let chunk_pages = u64::from(memory.chunk_pages());
    let with_data = memory.spans().iter().filter(|span| span.chunk.is_some());
    let run = |index: u64| {
        let (first, end) = (index * chunk_pages, ((index + 1) * chunk_pages).min(memory.pages()));
        (pages(first), pages(end - first))
    };
    covering(&with_data.map(|span| run(span.index)).collect::<Vec<_>>())
}

/// RAM has fewer pages than that; else a monitor finds that there are no such pages.
fn pages(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn expected(store: &Store, memory: &Layer) -> Vec<(u32, u32)> {
    let noted = store.working_set(memory.id()).unwrap_or_default();
    let run = |run: Range<u64>| Some((u32::try_from(run.start).ok()?, u32::try_from(run.end - run.start).ok()?));
    noted.into_iter().filter_map(run).take(MAX_EXPECTED).collect()
}

fn range((first, pages): (u32, u32)) -> Range<u64> {
    u64::from(first)..u64::from(first) + u64::from(pages)
}

/// An error and its causes, outermost first.
fn chain(error: &dyn Error) -> Vec<String> {
    let mut lines = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        lines.push(error.to_string());
        cause = error.source();
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use pando_store::Kind;
    use pando_wire::pages::MAX_HELD;

    #[test]
    fn every_page_with_bytes_is_told_of_in_few_runs_however_they_are_strewn() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).unwrap();
        let page = [7; PAGE_BYTES];
        for (count, every) in [(3, 100), (MAX_HELD as u64 + 1, 9)] {
            let writer = store.writer().unwrap();
            let mut layer = writer.layer(Kind::Memory, count * every).unwrap();
            (0..count).for_each(|at| layer.write(at * every, &page).unwrap());
            let machine = pando_store::Machine {
                kind: "k".into(),
                version: 1,
                arch: "a".into(),
                cpu_features: Vec::new(),
                state: Vec::new(),
            };
            let (name, memory) = (count.to_string(), Some(layer.finish().unwrap()));
            writer
                .publish(&Checkpoint { name: name.clone(), created_ms: 1, machine, memory, disks: Vec::new() })
                .unwrap();
            let layer = store.open_checkpoint(&name).unwrap().memory().unwrap().unwrap();
            let held = held(layer.manifest());
            assert!(held.len() <= MAX_HELD);
            let is_told = |page: u64| held.iter().any(|run| range(*run).contains(&page));
            assert!((0..count).step_by(97).chain([count - 1]).all(|at| is_told(at * every)));
            assert!(held.is_sorted() && range(*held.last().unwrap()).end <= count * every);
            assert_eq!(held.len() == 3, count == 3, "no coarser than it must be");
        }
    }
}
