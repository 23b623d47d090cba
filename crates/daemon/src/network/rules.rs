//! The rules of nftables, as text: of one VM's namespace, and of the host's.

use super::cidr::Cidr;
use super::host::Host;
use super::policy::{METADATA, Reach, Resolved};
use super::{GATEWAY_MAC, LINKS, TAP, UPLINK};
use pando_wire::network::{MAC, Network};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// A VM may begin this many flows per second, and [`FLOW_BURST`] at once. The host's table of flows is one for all VMs.
pub const FLOWS_PER_SECOND: u32 = 500;
/// See [`FLOWS_PER_SECOND`].
pub const FLOW_BURST: u32 = 2000;
/// How many VMs are counted by themselves when the host has refused them something.
const MAX_NOTED: u32 = 65_536;
/// What the name of a set of [`notes`] ends with.
pub(super) const BY: &str = "_by";
/// What a limited VM may at least send at once, in bytes: a packet that the guest leaves for the host to cut has 64 KiB.
const LEAST_BURST: u64 = 256 << 10;

/// What a VM's namespace lets through, in one transaction that replaces what was there before.
///
/// The first table sees frames of the guest before anything of the host's does: only IPv4 from its own address gets by. The
/// second one is an ordinary router's. Each rule that refuses has a counter of its own, which begins with what it had `so_far`.
///
/// What the guest sends is looked at packet by packet, also in a connection that there is: what is refused from now on is so at
/// once. What answers it is not, so that an answer needs no rule.
pub(super) fn of_vm(
    policy: &Resolved,
    range: Cidr,
    name_server: Option<Ipv4Addr>,
    so_far: &BTreeMap<String, u64>,
) -> String {
    let Network { address, gateway, .. } = Network::GUEST;
    let mac = mac(MAC);
    let (limit_out, limit_in) = match policy.bytes_per_second {
        None => (String::new(), String::new()),
        Some(rate) => (limit("iifname", rate), limit("oifname", rate)),
    };
    let dnat = match (name_server, policy.reach) {
        (Some(server), Reach::Nat) => {
            format!("iifname {TAP} ip daddr {gateway} meta l4proto {{ tcp, udp }} th dport 53 dnat to {server}")
        }
        // Nobody is asked: the question is refused by the gateway.
        _ => String::new(),
    };
    let verdict = match (policy.reach, &policy.allow) {
        (Reach::Isolated, _) => format!("{} reject with icmp admin-prohibited", counted("isolated")),
        (Reach::Nat, None) => "accept".to_owned(),
        (Reach::Nat, Some(_)) => {
            format!("ip daddr @allowed accept\n{} reject with icmp admin-prohibited", counted("not_allowed"))
        }
    };
    let metadata = match policy.opens_metadata {
        true => String::new(), // It is among what is allowed.
        false => format!("ip daddr {METADATA} {} reject with icmp admin-prohibited", counted("link_local")),
    };
    let asked = if policy.reach == Reach::Nat { "ct status dnat accept" } else { "" };
    let denied = set("denied", &policy.deny);
    let allowed = policy.allow.as_deref().map_or(String::new(), |networks| set("allowed", networks));
    let [spoofed_mac, bad_arp, not_ip, spoofed_address, nowhere] =
        ["spoofed_mac", "bad_arp", "not_ip", "spoofed_address", "nowhere"].map(counted);
    let [stale, to_gateway, unasked, invalid, flood, range_hit, denied_hit] =
        ["stale", "to_gateway", "unasked", "invalid", "flood", "range", "denied"].map(counted);
    format!(
        "
add table netdev pando
delete table netdev pando
add table ip pando
delete table ip pando
table netdev pando {{
  {ingress_counters}
  chain from_guest {{
    type filter hook ingress device {TAP} priority 0; policy drop;
    ether saddr != {mac} {spoofed_mac} drop
    ether type arp arp operation request arp saddr ether {mac} arp saddr ip {address} arp daddr ip {gateway} accept
    ether type arp {bad_arp} drop
    ether type != ip {not_ip} drop
    ip saddr != {address} {spoofed_address} drop
    ip daddr {{ 0.0.0.0/8, 127.0.0.0/8, 224.0.0.0/3 }} {nowhere} drop
    accept
  }}
}}
table ip pando {{
  {counters}
  {denied}
  {allowed}
  chain names {{
    type nat hook prerouting priority dstnat;
    {dnat}
  }}
  chain input {{
    type filter hook input priority filter; policy drop;
    meta l4proto tcp ct state invalid {stale} reject with tcp reset
    iifname {TAP} ip daddr {gateway} icmp type echo-request accept
    iifname {TAP} {to_gateway} reject
    {unasked}
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    {limit_out}
    {limit_in}
    meta l4proto tcp ct state invalid {stale} reject with tcp reset
    ct state invalid {invalid} drop
    iifname != {TAP} ct state established,related accept
    iifname != {TAP} {unasked} drop
    ct state new limit rate over {FLOWS_PER_SECOND}/second burst {FLOW_BURST} packets {flood} drop
    {asked}
    ip daddr {range} {range_hit} reject with icmp admin-prohibited
    oifname {TAP} {range_hit} reject with icmp admin-prohibited
    {metadata}
    ip daddr @denied {denied_hit} reject with icmp admin-prohibited
    {verdict}
  }}
  chain uplink {{
    type nat hook postrouting priority srcnat;
    oifname {UPLINK} masquerade
  }}
}}
",
        ingress_counters = counters(&["spoofed_mac", "bad_arp", "not_ip", "spoofed_address", "nowhere"], so_far),
        counters = counters(
            &[
                "stale",
                "to_gateway",
                "unasked",
                "invalid",
                "flood",
                "range",
                "link_local",
                "denied",
                "isolated",
                "not_allowed",
                "too_fast",
            ],
            so_far
        ),
    )
}

/// The host's table for all VMs of one daemon. A packet that it lets through may still be dropped by another's.
///
/// What a VM's namespace refuses is refused here again where it matters most: the host's own addresses (also those that
/// another's rules would send elsewhere), and other VMs, also another daemon's. Of a link in the [open group](Host::open_group),
/// the first are let through, but for those that lead to VMs. Packet by packet, as in a namespace: what answers the host passes.
pub(super) fn of_host(host: &Host) -> String {
    let Host { table, group, range, .. } = host;
    let open = host.open_group();
    let group = format!("{{ {group}, {open} }}");
    let own = format!("iifgroup {open} ip daddr != {range} fib daddr type local accept");
    let asked = match host.name_server {
        Some(server) => format!("iifgroup {group} ip daddr {server} meta l4proto {{ tcp, udp }} th dport 53 accept"),
        None => String::new(),
    };
    let [to_host, to_vm] = ["to_host", "to_vm"].map(counted);
    let [note_host, note_vm] = ["to_host", "to_vm"].map(noted);
    format!(
        "
add table inet {table}
delete table inet {table}
table inet {table} {{
  {counters}
  {by_link}
  chain prerouting {{
    type filter hook prerouting priority mangle; policy accept;
    iifgroup != {group} accept
    ct direction reply ct state established,related accept
    {asked}
    {own}
    fib daddr type local {note_host}
    fib daddr type local {to_host} reject with icmpx admin-prohibited
  }}
  chain input {{
    type filter hook input priority filter - 1; policy accept;
    iifgroup != {group} accept
    ct direction reply ct state established,related accept
    {asked}
    {own}
    {note_host}
    {to_host} drop
  }}
  chain forward {{
    type filter hook forward priority filter - 1; policy accept;
    oifgroup {group} ct state established,related accept
    oifgroup {group} {to_vm} drop
    iifgroup {group} oifname \"{LINKS}*\" {note_vm}
    iifgroup {group} oifname \"{LINKS}*\" {to_vm} drop
    iifgroup {group} ct state invalid drop
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    iifgroup {group} oifname != \"{LINKS}*\" masquerade
  }}
}}
",
        counters = counters(&["to_host", "to_vm"], &BTreeMap::new()),
        by_link = ["to_host", "to_vm"].map(notes).join("\n  "),
    )
}

/// Takes the host's table away, if there is one.
pub(super) fn without_host(table: &str) -> String {
    format!("add table inet {table}\ndelete table inet {table}\n")
}

/// Drops what goes over `rate` where `side`, the interface it comes in or leaves by, is the guest's.
fn limit(side: &str, rate: u64) -> String {
    let burst = (rate / 4).clamp(LEAST_BURST, u64::from(u32::MAX));
    format!("{side} {TAP} limit rate over {rate} bytes/second burst {burst} bytes {} drop", counted("too_fast"))
}

fn set(name: &str, networks: &[Cidr]) -> String {
    let elements: Vec<_> = networks.iter().map(Cidr::to_string).collect();
    let elements =
        if elements.is_empty() { String::new() } else { format!("elements = {{ {} }};", elements.join(", ")) };
    format!("set {name} {{ type ipv4_addr; flags interval; auto-merge; {elements} }}")
}

/// Named counters, each of which begins with the packets that it had.
fn counters(names: &[&str], so_far: &BTreeMap<String, u64>) -> String {
    let counter = |name: &&str| {
        let packets = so_far.get(*name).copied().unwrap_or_default();
        format!("counter {name} {{ packets {packets} bytes 0 }}")
    };
    let all: Vec<_> = names.iter().map(counter).collect();
    all.join("\n  ")
}

fn counted(name: &str) -> String {
    format!("counter name {name}")
}

/// A set of the links that sent what was refused for this reason: each VM's share of the counter with its name. No link ever
/// has the index of one that is gone. When it is full, nobody new is counted, and is refused all the same.
fn notes(name: &str) -> String {
    format!("set {name}{BY} {{ type iface_index; size {MAX_NOTED}; flags dynamic,timeout; timeout 7d; }}")
}

/// Counts in such a set. A rule of its own, as what follows must not depend on it.
fn noted(name: &str) -> String {
    format!("update @{name}{BY} {{ iif counter }}")
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

/// The two ends of a tap's cable are told apart.
const _: () = assert!(GATEWAY_MAC[5] != MAC[5]);
