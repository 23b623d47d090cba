//! A machine's state, field by field, so that a difference has a name.

use crate::machine::MachineState;
use kvm_bindings::{kvm_clock_data, kvm_debugregs, kvm_mp_state, kvm_pit_state2, kvm_vcpu_events, kvm_xcrs};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Debug;

/// `kvm_pic_state`, a byte each.
const PIC: [&str; 16] = [
    "last_irr",
    "irr",
    "imr",
    "isr",
    "priority_add",
    "irq_base",
    "read_reg_select",
    "poll",
    "special_mask",
    "init_state",
    "auto_eoi",
    "rotate_on_auto_eoi",
    "special_fully_nested_mode",
    "init4",
    "elcr",
    "elcr_mask",
];
/// Where the chip begins in `kvm_irqchip`, and the redirection table in `kvm_ioapic_state`.
const CHIP_AT: usize = 8;
const REDIRECTIONS_AT: usize = 24;

/// Every field's name and what it holds.
pub(super) type Fields = BTreeMap<String, String>;

/// All of `state`.
pub(super) fn of(state: &MachineState) -> Fields {
    let mut fields = Fields::new();
    let json = serde_json::to_value(state).unwrap();
    for (id, vcpu) in state.vcpus.iter().enumerate() {
        let at = |name: &str| format!("vcpu{id}.{name}");
        let json = &json["vcpus"][id];
        debug(&at("cpuid"), &vcpu.cpuid.as_slice(), &mut fields);
        debug(&at("regs"), &vcpu.regs, &mut fields);
        debug(&at("sregs"), &vcpu.sregs, &mut fields);
        debug(&at("tsc"), &vcpu.tsc, &mut fields);
        for (index, value) in &vcpu.msrs {
            fields.insert(at(&format!("msr[{index:#x}]")), format!("{value:#x}"));
        }
        for (index, register) in vcpu.lapic.regs.as_chunks::<16>().0.iter().enumerate() {
            let value = u32::from_le_bytes([0, 1, 2, 3].map(|byte| register[byte] as u8));
            fields.insert(at(&format!("lapic[{:#x}]", index * 16)), format!("{value:#x}"));
        }
        debug(&at("xcrs"), &typed::<kvm_xcrs>(&json["xcrs"]), &mut fields);
        debug(&at("debug_registers"), &typed::<kvm_debugregs>(&json["debug_registers"]), &mut fields);
        debug(&at("mp_state"), &typed::<kvm_mp_state>(&json["mp_state"]), &mut fields);
        debug(&at("events"), &typed::<kvm_vcpu_events>(&json["events"]), &mut fields);
        plain(&at("xsave"), &json["xsave"], &mut fields);
    }
    let vm = &json["vm"];
    debug("pit", &typed::<kvm_pit_state2>(&vm["pit"]), &mut fields);
    debug("clock", &typed::<kvm_clock_data>(&vm["clock"]), &mut fields);
    for (name, chip) in ["pic0", "pic1"].into_iter().zip(vm["irqchips"].as_array().unwrap()) {
        for (field, byte) in PIC.into_iter().zip(&bytes(chip)[CHIP_AT..]) {
            fields.insert(format!("{name}.{field}"), byte.to_string());
        }
    }
    let ioapic = &bytes(&vm["irqchips"][2])[CHIP_AT..];
    plain("ioapic.head", &ioapic[..REDIRECTIONS_AT].into(), &mut fields);
    for (pin, entry) in ioapic[REDIRECTIONS_AT..].as_chunks::<8>().0[..24].iter().enumerate() {
        fields.insert(format!("ioapic.redirection[{pin}]"), format!("{:#x}", u64::from_le_bytes(*entry)));
    }
    plain("platform", &json["platform"], &mut fields);
    plain("msrs", &json["msrs"], &mut fields);
    let parts = ["vcpus", "vm", "platform", "msrs"];
    assert!(json.as_object().unwrap().keys().all(|part| parts.contains(&part.as_str())), "a part is not looked at");
    fields
}

/// The names of fields that differ, with both values.
pub(super) fn differences(before: &Fields, after: &Fields) -> Vec<(String, String)> {
    let mut names: Vec<_> = before.keys().chain(after.keys()).collect();
    names.sort();
    names.dedup();
    let values = |name: &String| (before.get(name), after.get(name));
    let different = names.into_iter().map(|name| (name, values(name))).filter(|(_, (one, other))| one != other);
    different.map(|(name, (one, other))| (name.clone(), format!("{one:?} became {other:?}"))).collect()
}

fn typed<T: for<'de> serde::Deserialize<'de>>(json: &Value) -> T {
    serde_json::from_value(json.clone()).unwrap()
}

fn bytes(json: &Value) -> Vec<u8> {
    typed(json)
}

fn plain(name: &str, json: &Value, fields: &mut Fields) {
    match json {
        Value::Object(members) => {
            members.iter().for_each(|(key, value)| plain(&format!("{name}.{key}"), value, fields))
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, value)| plain(&format!("{name}[{index}]"), value, fields));
        }
        leaf => drop(fields.insert(name.to_owned(), leaf.to_string())),
    }
}

/// What `{:#?}` prints, a line a field, each under the names of those around it.
fn debug(name: &str, value: &dyn Debug, fields: &mut Fields) {
    let text = format!("{value:#?}");
    let mut path: Vec<(String, usize)> = Vec::new(); // Names, and how many unnamed things are in each.
    for line in text.lines().map(|line| line.trim().trim_end_matches(',')) {
        if matches!(line, "}" | "]" | ")") {
            path.pop();
            continue;
        }
        let (own, rest) = line.split_once(": ").map_or((None, line), |(own, rest)| (Some(own), rest));
        let own = match (own, path.last_mut()) {
            (Some(own), _) => format!(".{own}"),
            (None, Some((_, count))) => {
                *count += 1;
                format!("[{}]", *count - 1)
            }
            (None, None) => name.to_owned(),
        };
        if rest.ends_with(['{', '[', '(']) {
            path.push((own, 0));
        } else {
            let around: String = path.iter().map(|(name, _)| name.as_str()).collect();
            fields.insert(around + &own, rest.to_owned());
        }
    }
}
