//! Seeds here are processes that were forked and do nothing, and this process is the VM: it keeps a copy of what its memory
//! was at each fork, and holds every word about a page against that.

use super::*;
use pando_sys::{HUGE_PAGE, fork, give_back, guest_memory};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
use std::os::unix::net::UnixStream;
use std::thread;
use vm_memory::Bytes;

const GROUP: u64 = 4;
/// Two huge pages, and one above the hole.
const REGIONS: [(u64, u64); 2] = [(0, 2 * HUGE_PAGE), (1 << 32, HUGE_PAGE)];

/// A seed, and what its memory is.
struct Seed {
    pid: Pid,
    pages: Vec<u8>,
}

impl Seed {
    fn of(memory: &GuestMemoryMmap) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let pages = contents(memory);
        let wait = |kept: Vec<_>| {
            let socket = UnixStream::from(kept.into_iter().next().unwrap());
            let _ = std::io::Read::read(&mut &socket, &mut [0]);
            loop {
                thread::park(); // Until it is killed.
            }
        };
        let (pid, _theirs) = fork(vec![theirs.into()], wait).unwrap();
        drop(ours);
        Self { pid, pages }
    }

    fn pagemap(&self) -> File {
        File::open(format!("/proc/{}/pagemap", self.pid.as_raw_nonzero())).unwrap()
    }

    fn end(&self) {
        let _ = kill_process(self.pid, Signal::KILL);
        let _ = waitpid(Some(self.pid), WaitOptions::empty());
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        self.end();
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// The pages of guest memory, in one row.
fn pages() -> Vec<u64> {
    REGIONS.iter().flat_map(|(start, len)| start / PAGE..(start + len) / PAGE).collect()
}

fn contents(memory: &GuestMemoryMmap) -> Vec<u8> {
    let mut all = vec![0; pages().len() * PAGE as usize];
    let present = |page| pando_sys::present(memory, GuestAddress(page * PAGE), PAGE as usize).unwrap()[0];
    for (page, bytes) in pages().into_iter().zip(all.chunks_mut(PAGE as usize)) {
        // To read one that is not there would make it.
        if present(page) {
            memory.read_slice(bytes, GuestAddress(page * PAGE)).unwrap();
        }
    }
    all
}

fn vmstat() -> File {
    File::open("/proc/vmstat").unwrap()
}

/// What is known of each group of pages.
fn compare(seeds: &TwoSeeds, memory: &GuestMemoryMmap) -> Vec<Known> {
    let region = |(start, len): (u64, u64)| seeds.compare(memory, start / PAGE..(start + len) / PAGE, GROUP);
    let runs = REGIONS.into_iter().flat_map(region);
    let groups = |(run, known): (Range<u64>, Known)| run.step_by(GROUP as usize).map(move |_| known);
    let groups: Vec<_> = runs.flat_map(groups).collect();
    assert_eq!(groups.len() as u64 * GROUP, pages().len() as u64, "of each group, once");
    groups
}

/// Fills the memory, but for some of it, which is never touched, or zeroes.
fn fill(memory: &GuestMemoryMmap, random: &mut Random) {
    for page in pages() {
        match random.below(8) {
            _ if page < HUGE_PAGE / PAGE && page % 64 < 8 => (), // Not there, where there are no huge pages.
            0 => memory.write_slice(&[0; PAGE as usize], GuestAddress(page * PAGE)).unwrap(),
            _ => {
                let bytes: Vec<u8> = (0..PAGE).map(|_| random.below(256) as u8).collect();
                memory.write_slice(&bytes, GuestAddress(page * PAGE)).unwrap();
            }
        }
    }
}

/// Whether this process is told where its pages are.
fn knows_frames(memory: &GuestMemoryMmap) -> bool {
    let host = memory.get_host_address(GuestAddress(1 << 32)).unwrap() as u64 / PAGE;
    entries(&File::open("/proc/self/pagemap").unwrap(), host, 1).unwrap()[0] & FRAME != 0
}

/// Holds what is known against what is. The answer is how many groups changed and are there, and of how many nothing is known.
fn hold_against(known: &[Known], earlier: &[u8], own: &[u8]) -> (usize, usize) {
    let group_bytes = (GROUP * PAGE) as usize;
    let (mut changed, mut unknown) = (0, 0);
    let groups = known.iter().zip(earlier.chunks(group_bytes).zip(own.chunks(group_bytes)));
    for (at, (known, (earlier, own))) in groups.enumerate() {
        changed += usize::from(earlier != own && *known != Known::Zero);
        match known {
            Known::Zero => assert!(own.iter().all(|byte| *byte == 0), "group {at} is not zero"),
            Known::Same => assert!(earlier == own, "group {at} is not the same"),
            Known::Nothing => unknown += 1,
        }
    }
    (changed, unknown)
}

#[test]
fn what_is_called_the_same_is_so_whatever_was_written_and_little_else_is_to_be_read() {
    let memory = guest_memory(&REGIONS).unwrap();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    fill(&memory, &mut random);
    let all = pages();
    let mut earlier = Seed::of(&memory);
    let mut exact = 0;
    for round in 0..24 {
        for _ in 0..random.below(40) {
            // One byte, anywhere in a page, which may become what it was.
            let address = all[random.below(all.len() as u64) as usize] * PAGE + random.below(PAGE);
            memory.write_obj(random.below(256) as u8, GuestAddress(address)).unwrap();
        }
        for _ in 0..random.below(3) {
            let first = random.below(HUGE_PAGE / PAGE - 8) as u32;
            give_back(&memory, first..first + 8).unwrap();
        }
        let own = Seed::of(&memory);
        let seeds = TwoSeeds::new(earlier.pagemap(), own.pagemap(), vmstat());
        let (changed, unknown) = hold_against(&compare(&seeds, &memory), &earlier.pages, &own.pages);
        // A byte may have been written that was there before.
        exact += usize::from(unknown <= changed + 4);
        // Against the last one, or one that is further back.
        if round % 3 != 0 {
            earlier = own;
        }
    }
    assert!(!knows_frames(&memory) || exact >= 12, "in {exact} of 24 rounds only what had changed was to be read");
}

#[test]
fn whoever_may_not_know_where_pages_are_is_told_nothing_but_zeroes() {
    let memory = guest_memory(&REGIONS).unwrap();
    fill(&memory, &mut Random(1));
    let (earlier, own) = (Seed::of(&memory), Seed::of(&memory));
    let without_the_right = || {
        let all = capabilities(None).unwrap();
        let effective = all.effective - CapabilitySet::SYS_ADMIN;
        set_capabilities(None, CapabilitySets { effective, ..all }).unwrap();
        [earlier.pagemap(), own.pagemap()]
    };
    let [hidden, own_hidden] = thread::scope(|scope| scope.spawn(without_the_right).join()).unwrap();
    let copy = |file: &File| file.try_clone().unwrap();
    let pairs = [
        [copy(&hidden), own.pagemap()],
        [earlier.pagemap(), copy(&own_hidden)],
        [hidden, own_hidden], // As it is for a daemon without the right.
    ];
    for [earlier, own] in pairs {
        let known = compare(&TwoSeeds::new(earlier, own, vmstat()), &memory);
        assert!(known.iter().all(|known| *known != Known::Same));
    }
    let seeds = TwoSeeds::new(earlier.pagemap(), own.pagemap(), vmstat());
    let known = compare(&seeds, &memory);
    assert_eq!(known.contains(&Known::Same), knows_frames(&memory));
}

#[test]
fn of_a_seed_that_has_ended_nothing_is_known() {
    let memory = guest_memory(&REGIONS).unwrap();
    fill(&memory, &mut Random(2));
    let (earlier, own) = (Seed::of(&memory), Seed::of(&memory));
    let seeds = TwoSeeds::new(earlier.pagemap(), own.pagemap(), vmstat());
    earlier.end();
    assert!(compare(&seeds, &memory).iter().all(|known| *known != Known::Same));
    own.end();
    assert!(compare(&seeds, &memory).iter().all(|known| *known == Known::Nothing));
}

#[test]
fn a_frame_that_one_page_left_and_the_other_took_is_not_one_page() {
    let frame = |number: u64| PRESENT | number;
    let (soft_dirty, exclusive) = (1 << 55, 1 << 56);
    assert!(is_one_page([frame(7), frame(7) | soft_dirty, frame(7) | exclusive, frame(7)]));
    assert!(is_one_page([0, soft_dirty, 0, 0]), "zeroes in both");
    for at in 0..4 {
        for other in [frame(8), 0, frame(0), SWAPPED | 7, frame(7) | OF_A_FILE, frame(7) | SWAPPED] {
            let mut readings = [frame(7); 4];
            readings[at] = other;
            assert!(!is_one_page(readings), "{readings:x?}");
        }
    }
    assert!(is_absent(0) && is_absent(soft_dirty) && !is_absent(SWAPPED | 7), "what is swapped out is no zero");
    let unsaid = [PRESENT; 4];
    assert!(!is_one_page(unsaid), "frame 0 is what is shown to who may not know");
}

#[test]
fn while_the_kernel_moves_pages_nothing_is_known() {
    let looked_at = |counts: [Option<u64>; 2], frames: [u64; 4]| {
        let mut order = Vec::new();
        let (mut counts, mut frames) = (counts.into_iter(), frames.into_iter());
        let read = |of| {
            order.push(of);
            Some(vec![PRESENT | frames.next().unwrap()])
        };
        let same = same_pages(read, || counts.next().unwrap());
        assert!(same.is_none() || order == [Of::Earlier, Of::Own, Of::Earlier, Of::Own]);
        same
    };
    assert_eq!(looked_at([Some(1), Some(1)], [7; 4]), Some(vec![true]));
    assert_eq!(looked_at([Some(1), Some(2)], [7; 4]), None);
    assert_eq!(looked_at([None, None], [7; 4]), None);
    for at in 0..4 {
        let mut frames = [7; 4];
        frames[at] = 8;
        assert_eq!(looked_at([Some(1), Some(1)], frames), Some(vec![false]), "nor of what moved without being counted");
    }
}

#[test]
fn moves_are_counted_wherever_the_kernel_says_so() {
    let vmstat = "nr_free_pages 5\npgmigrate_success 10\npgmigrate_fail 3\nthp_collapse_alloc 200\npswpin 3000\n";
    assert_eq!(counted(vmstat), Some(3210));
    assert_eq!(counted("pgmigrate_success 1\nzswpin 20\nswpin_zero 300\n"), Some(321));
    assert_eq!(counted("nr_free_pages 5\n"), None);
    assert_eq!(counted("pgmigrate_success many\n"), None);
    assert!(moves(&super::tests::vmstat()).is_some(), "this kernel says so");
}
