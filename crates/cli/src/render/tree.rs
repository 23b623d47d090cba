//! Who was forked from whom.

use super::table::{SHORTEST, cut};
use super::{bytes, state};
use pando_wire::api::Vm;
use std::collections::BTreeMap;

/// The fork trees, oldest first, one VM per line, no line longer than `width` if cutting names can bring that about.
///
/// ```text
/// web          running  512 MiB
/// ├─ review.1  running  512 MiB
/// └─ review.2  paused   512 MiB
/// ```
pub(crate) fn tree(vms: &[Vm], width: Option<usize>) -> String {
    let mut children: BTreeMap<&str, Vec<&Vm>> = BTreeMap::new();
    let mut roots = Vec::new();
    for vm in vms {
        match &vm.parent {
            Some(parent) if vms.iter().any(|other| other.id == *parent) => children.entry(parent).or_default().push(vm),
            _ => roots.push(vm),
        }
    }
    roots.sort_by_key(|vm| (vm.created_ms, &vm.id));
    children.values_mut().for_each(|vms| vms.sort_by_key(|vm| (vm.created_ms, &vm.id)));

    let mut lines = Vec::new();
    // A stack, not recursion: the depth is whatever a daemon says. What hangs on no root (a circle) is left out.
    let mut stack: Vec<(&Vm, String, String)> =
        roots.into_iter().rev().map(|vm| (vm, String::new(), String::new())).collect();
    while let Some((vm, lead, below)) = stack.pop() {
        lines.push((format!("{lead}{}", vm.name), vm));
        let children = children.get(vm.id.as_str()).map(Vec::as_slice).unwrap_or_default();
        for (index, child) in children.iter().enumerate().rev() {
            let (branch, trunk) = if index + 1 == children.len() { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            stack.push((child, format!("{below}{branch}"), format!("{below}{trunk}")));
        }
    }

    let longest = lines.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let rest = |vm: &Vm| format!("  {:8}  {}", state(vm.state), bytes(vm.memory_bytes));
    let longest_rest = lines.iter().map(|(_, vm)| rest(vm).chars().count()).max().unwrap_or(0);
    let room = width.map_or(longest, |width| width.saturating_sub(longest_rest).clamp(SHORTEST, longest.max(SHORTEST)));
    lines.into_iter().map(|(name, vm)| format!("{:1$}{2}\n", cut(&name, room), room.min(longest), rest(vm))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::fixture::vm;

    #[test]
    fn children_hang_below_their_parents_in_the_order_of_their_births() {
        let vms = [
            vm("web", None, 0),
            vm("review.2", Some("web"), 2),
            vm("review.1", Some("web"), 1),
            vm("try", Some("review.1"), 3),
            vm("orphan", Some("removed"), 4),
        ];
        let expected = "\
web          running   512 MiB
├─ review.1  running   512 MiB
│  └─ try    running   512 MiB
└─ review.2  running   512 MiB
orphan       running   512 MiB
";
        assert_eq!(tree(&vms, None), expected);
        assert_eq!(tree(&vms, Some(80)), expected);
    }

    #[test]
    fn a_deep_tree_fits_the_terminal_and_is_whole_in_a_pipe() {
        let mut vms = vec![vm("a-name-that-is-long", None, 0)];
        for depth in 1..40 {
            let name = format!("{}-{depth}", vms[0].name);
            let parent = vms[depth - 1].name.clone();
            vms.push(vm(&name, Some(&parent), depth as i64));
        }
        let narrow = tree(&vms, Some(80));
        assert!(narrow.lines().all(|line| line.chars().count() <= 80), "{narrow}");
        assert!(narrow.lines().last().unwrap().contains("…  running   512 MiB"), "{narrow}");
        assert!(tree(&vms, None).contains("a-name-that-is-long-39 "));
    }

    #[test]
    fn a_circle_of_parents_ends() {
        assert_eq!(tree(&[vm("a", Some("b"), 0), vm("b", Some("a"), 0)], None), "");
    }
}
