//! Networks whose holders are killed, as monitors may be.

use crate::world::{block_on, internet, left, links, networks, on_a_host, wait_until};
use pando_daemon::network::Policy;
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

const NETWORKS: u32 = 500;
/// How many there are at once, at most.
const AT_ONCE: u64 = 20;

fn kill(mut holder: Child) {
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[test]
fn five_hundred_networks_whose_holders_are_killed_at_any_moment_leave_nothing() {
    on_a_host(|| {
        let _internet = internet();
        let before = left();
        let networks = networks();
        let mut holders = Vec::new();
        let mut seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos() | 1;
        println!("seed {seed}");
        let mut below = |end: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 17;
            seed ^= seed << 5;
            usize::try_from(u64::from(seed) % end).unwrap()
        };
        for _ in 0..NETWORKS {
            let taken = block_on(networks.take(1, &Policy::default())).unwrap();
            assert!(holders.iter().all(|(address, _)| *address != taken.outside), "no two have one address");
            // All of a network that a monitor holds is the queues of its tap.
            let queue = taken.queues.into_iter().next().unwrap();
            let holder = Command::new("sleep").arg("1000").stdin(queue).stdout(Stdio::null()).spawn().unwrap();
            holders.push((taken.outside, holder));
            let rest = below(AT_ONCE);
            while holders.len() > rest {
                let index = below(u64::try_from(holders.len()).unwrap());
                kill(holders.swap_remove(index).1);
            }
        }
        holders.into_iter().for_each(|(_, holder)| kill(holder));
        networks.close();
        wait_until("the end of all links", || links() == 0);
        drop(networks);
        // The table goes with the last link, or when the next daemon begins.
        self::networks().adopt().unwrap();
        assert_eq!(left(), before);
    });
}
