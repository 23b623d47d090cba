//! Toy guests, which start at once: what was said to be stored, after many power cuts.
//!
//! The guest is [`Witness`], which notices when its memory, its registers and its disk are not of one instant. The store,
//! and the processes that write into it, are those that Linux guests have; who drives them is this test program itself,
//! in the emulated host.

use crate::{Disk, cuts, moment};
use pando_bench::{Monitor, Told, Witness, serve};
use pando_store::{Checkpoint, Store};
use pando_tests::{Run, prepared, progress, setting};
use std::path::Path;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

/// Where the emulated host has the store.
const STORE: &str = "/tmp/disk/toys";
/// Set in the emulated host: after how many milliseconds of work its power is cut; 0 when it is not.
const DELAY: &str = "PANDO_POWER_CUT_DELAY";
/// Set in there: what was said to be stored, as it was said.
const STORED: &str = "PANDO_POWER_CUT_STORED";
/// Runs [`in_the_host_whose_power_is_cut`] in there.
const INSIDE: &str =
    r#"exec "$TESTS" --exact toys::in_the_host_whose_power_is_cut --ignored --nocapture --test-threads=1"#;
const WITNESS: Witness = Witness { vcpus: 1, pages: 512, records: 64 };
const MEMORY: u64 = 128 << 20;
/// A guest that has lost something never gets there.
const LIMIT: Duration = Duration::from_secs(100);
/// How long one is believed to take to be stored before one was.
const FIRST_SAVE: Duration = Duration::from_secs(2);
/// So many more cuts where all came before anything was stored: each may come twice as late as the one before.
const MORE: u32 = 8;
/// With so many cuts, each kind of moment was hit.
const MANY: u32 = 40;

/// What was under way when the power was cut, as far as it was told.
#[derive(Debug, Default, Clone, Copy)]
struct Moments {
    saving: u32,
    removing: u32,
    collecting: u32,
    /// Nothing was stored in that round yet.
    before: u32,
    /// Something was.
    after: u32,
}

/// One round, as it is told line by line.
#[derive(Debug, Default)]
struct Round {
    saving: bool,
    removing: bool,
    collecting: bool,
    stored: u32,
    longest: Duration,
}

#[test]
#[ignore = "needs an emulated host: make test"]
fn toys_that_were_stored_survive_power_cuts_of_the_host_and_half_written_ones_are_not_offered() {
    let (cuts, disk) = (cuts(), Disk::new());
    let (mut stored, mut moments, mut longest) = (Vec::new(), Moments::default(), FIRST_SAVE);
    let start = Instant::now();
    let mut cut = 0;
    while cut < cuts || stored.is_empty() && cut < cuts + MORE {
        cut += 1;
        let delay = moment(longest * 2).max(Duration::from_millis(1));
        let run = inside(&disk, &stored, delay);
        assert_eq!(run.code, 137, "the power was not cut: {run:?}");
        let mut told = Round::default();
        run.stdout.lines().for_each(|line| told.hear(line, &mut stored));
        moments.count(&told);
        longest = match told.stored {
            0 if stored.is_empty() => longest * 2, // The first guess was too short.
            0 => longest,
            _ => told.longest,
        };
        progress(format!("cut {cut} of {cuts} after {delay:?} of work, {:?} in all: {told:?}", run.took));
    }
    let each = start.elapsed() / cut;
    progress(format!("{cut} cuts, {each:?} each: {moments:?}, at last {stored:?}"));
    assert!(!stored.is_empty(), "there is something to look for");
    let is_spread = [moments.saving, moments.collecting, moments.before, moments.after].iter().all(|&count| count > 0);
    assert!(is_spread || cuts < MANY, "cuts came at all kinds of moments: {moments:?}");
    inside(&disk, &stored, Duration::ZERO).ok();
}

fn inside(disk: &Disk, stored: &[String], delay: Duration) -> Run {
    let program = std::env::current_exe().unwrap().display().to_string();
    let delay = delay.as_millis().to_string();
    disk.run(1024, "0", INSIDE, &[("TESTS", program), (DELAY, delay), (STORED, stored.join(" "))])
}

impl Round {
    /// Hears a line, and keeps what `stored` was said to be stored.
    fn hear(&mut self, line: &str, stored: &mut Vec<String>) {
        let words: Vec<_> = line.split(' ').collect();
        match words[..] {
            ["saving", _] => self.saving = true,
            ["stored", what, took_ms] => {
                (self.saving, self.stored) = (false, self.stored + 1);
                self.longest = self.longest.max(Duration::from_millis(took_ms.parse().unwrap()));
                stored.push(what.to_owned());
            }
            // Whether it was is not known before it is told, and either is right.
            ["removing", name] => {
                self.removing = true;
                stored.retain(|known| known.split(':').next() != Some(name));
            }
            ["removed", _] => self.removing = false,
            ["collecting"] => self.collecting = true,
            ["collected"] => self.collecting = false,
            _ => assert!(!line.contains("panicked"), "{line}"),
        }
    }
}

impl Moments {
    fn count(&mut self, round: &Round) {
        self.saving += u32::from(round.saving);
        self.removing += u32::from(round.removing);
        self.collecting += u32::from(round.collecting);
        self.before += u32::from(round.stored == 0);
        self.after += u32::from(round.stored > 0);
    }
}

/// What is done in the emulated host: what was stored is looked at, and then more is until the power is cut.
#[test]
#[ignore = "is run by the test above, in the host that it starts"]
fn in_the_host_whose_power_is_cut() {
    let Ok(delay) = std::env::var(DELAY) else { return };
    let said = std::env::var(STORED).unwrap();
    println!(); // The line that libtest has begun.
    let delay = Duration::from_millis(delay.parse().unwrap());
    let (store, pando) = (Store::create(Path::new(STORE)).unwrap(), prepared(setting::BINARY));
    let newest = look(&store, &said);
    let vm = match &newest {
        Some((_, name)) => restored(&pando, name),
        None => Monitor::boot_guest(&pando, &WITNESS.guest(MEMORY)).unwrap(),
    };
    wait_for_laps(&vm, WITNESS.records as usize + 2);
    if delay.is_zero() {
        return;
    }
    thread::spawn(move || {
        sleep(delay);
        println!("PANDO-CUT-POWER");
    });
    thread::spawn(collect);
    work(&store, &pando, &vm, newest);
}

/// Looks at all that the store has, which is what was said and perhaps more. The newest, and its number.
fn look(store: &Store, said: &str) -> Option<(u64, String)> {
    let there: Vec<_> = store.checkpoints().unwrap().iter().map(|name| store.checkpoint(name).unwrap()).collect();
    let words: Vec<_> = there.iter().map(word).collect();
    for one in said.split_whitespace() {
        assert!(words.iter().any(|word| word == one), "{one} was stored, and these are there: {words:?}");
    }
    let verified = store.verify().unwrap();
    assert!(verified.damage.is_empty(), "{verified:?}");
    assert_eq!(verified.checkpoints, there.len());
    there.into_iter().map(|one| (one.name[1..].parse().unwrap(), one.name)).max()
}

/// A checkpoint's name and its content.
fn word(checkpoint: &Checkpoint) -> String {
    let manifests: Vec<_> = checkpoint.manifests().map(|id| id.to_string()).collect();
    format!("{}:{}", checkpoint.name, manifests.join(":"))
}

fn restored(pando: &Path, name: &str) -> Monitor {
    let server = serve(pando, Path::new(STORE), name).unwrap();
    let vm = Monitor::restore(pando, &WITNESS.guest(MEMORY), server.connections).unwrap();
    vm.gather().unwrap();
    vm
}

/// Waits until it has made so many laps, and looks at what it says: it stands still where anything is not as it left it.
fn wait_for_laps(vm: &Monitor, laps: usize) {
    let told = vm.console_of(vm.console().unwrap().len() + laps, LIMIT).unwrap();
    let broken = told.iter().map(|byte| Told::from_byte(*byte)).find(|told| matches!(told, Told::Broken(..)));
    assert_eq!(broken, None);
}

/// Takes back what nobody needs, again and again.
fn collect() {
    let store = Store::open(Path::new(STORE)).unwrap();
    loop {
        println!("collecting");
        store.collect().unwrap();
        println!("collected");
        sleep(Duration::from_millis(50));
    }
}

/// Stores the VM again and again, and removes what is older.
fn work(store: &Store, pando: &Path, vm: &Monitor, newest: Option<(u64, String)>) -> ! {
    let mut older: Vec<_> = store.checkpoints().unwrap();
    for number in newest.map_or(1, |(number, _)| number + 1).. {
        wait_for_laps(vm, 1);
        let (name, seed) = (format!("c{number}"), vm.seed().unwrap());
        println!("saving {name}");
        let start = Instant::now();
        seed.save(pando, Path::new(STORE), &name).unwrap();
        let what = word(&store.checkpoint(&name).unwrap());
        println!("stored {what} {}", start.elapsed().as_millis());
        for name in older.drain(..) {
            println!("removing {name}");
            store.remove(&name).unwrap();
            println!("removed {name}");
        }
        older.push(name);
    }
    unreachable!("numbers do not end");
}
