//! What the guest is told about its machine: ACPI 6.5, hardware-reduced. CPUs and the I/O APIC in the MADT; devices,
//! power-off, reset and the generation counter in the DSDT.

use super::kernel::KernelError;
use crate::platform::{GENERATION_GSI, NET, SERIAL_GSI, SERIAL_PORT, device_gsi};
use acpi_tables::aml::{
    self, Device, EISAName, Equal, IO, If, Interrupt, Memory32Fixed, Method, Name, Notify, Package, Path,
    ResourceTemplate, Scope,
};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::{Aml, fadt, rsdp::Rsdp, sdt::Sdt, xsdt::XSDT};
use pando_memory::{MMIO_DEVICE_LEN, MMIO_DEVICES};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Where the tables begin: in the BIOS area, which is RAM that the guest leaves alone.
pub(super) const RSDP_ADDRESS: u64 = 0xe_0000;
/// Where VMGENID's 16 bytes lie.
pub(crate) const GENERATION_ADDRESS: u64 = 0xf_0000;
/// A write of [`SLEEP_POWER_OFF`] here turns the machine off.
pub(crate) const SLEEP_CONTROL_PORT: u16 = 0x600;
const SLEEP_STATUS_PORT: u16 = 0x601;
/// Any write here resets the machine.
pub(crate) const RESET_PORT: u16 = 0x602;
/// What `_S5` says belongs into `SLP_TYP`, beside the `SLP_EN` that starts it (ACPI 6.5, table 4.20).
const SLEEP_TYPE_S5: u8 = 5;
pub(crate) const SLEEP_POWER_OFF: u8 = SLEEP_TYPE_S5 << 2 | 1 << 5;

/// `IAPC_BOOT_ARCH` (table 5.11): hardware of a PC that a driver would otherwise wait for in vain.
const NO_VGA: u16 = 1 << 2;
const NO_CMOS_CLOCK: u16 = 1 << 5;

const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;
const OEM: [u8; 6] = *b"PANDO ";
const TABLE: [u8; 8] = *b"MICROVM ";
const REVISION: u32 = 1;

/// Writes all tables, of a machine with a network card or without one.
pub(super) fn write(memory: &GuestMemoryMmap, vcpus: u8, has_network: bool) -> Result<(), KernelError> {
    let mut next = RSDP_ADDRESS + 64; // Behind the RSDP, which is 36 bytes long.
    let mut put = |bytes: Vec<u8>| {
        let at = next;
        next = (at + bytes.len() as u64).next_multiple_of(16);
        memory.write_slice(&bytes, GuestAddress(at)).map(|()| at).map_err(KernelError::Tables)
    };
    let dsdt = put(dsdt(has_network))?;
    let fadt = put(bytes(&fadt(dsdt)))?;
    let madt = put(bytes(&madt(vcpus)))?;
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = put(bytes(&xsdt))?;
    memory.write_slice(&bytes(&Rsdp::new(OEM, xsdt)), GuestAddress(RSDP_ADDRESS)).map_err(KernelError::Tables)
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn fadt(dsdt: u64) -> fadt::FADT {
    let port = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port));
    let mut fadt = fadt::FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .flag(fadt::Flags::HwReducedAcpi)
        .flag(fadt::Flags::ResetRegSup)
        .flag(fadt::Flags::PwrButton)
        .flag(fadt::Flags::SlpButton);
    fadt.iapc_boot_arch = (NO_VGA | NO_CMOS_CLOCK).into();
    fadt.reset_reg = port(RESET_PORT);
    fadt.reset_value = 1;
    fadt.sleep_control_reg = port(SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(SLEEP_STATUS_PORT);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(*b"Pando\0\0\0").into();
    fadt.finalize()
}

fn madt(vcpus: u8) -> MADT {
    let mut madt = MADT::new(OEM, TABLE, REVISION, LocalInterruptController::Address(LOCAL_APIC));
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IO_APIC, 0));
    madt
}

fn dsdt(has_network: bool) -> Vec<u8> {
    let mut code = Vec::new();
    for index in (0..NET).chain(has_network.then_some(NET)) {
        virtio_device(index, &mut code);
    }
    serial_port(&mut code);
    generation_counter(&mut code);
    let sleep_type: &dyn Aml = &SLEEP_TYPE_S5;
    Name::new("_S5_".into(), &Package::new(vec![sleep_type])).to_aml_bytes(&mut code);
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM, TABLE, REVISION);
    dsdt.append_slice(&code);
    dsdt.as_slice().to_vec()
}

/// Adds a device to the system bus.
fn device(name: &str, properties: Vec<&dyn Aml>, code: &mut Vec<u8>) {
    Scope::new("_SB_".into(), vec![&Device::new(name.into(), properties)]).to_aml_bytes(code);
}

/// An edge-triggered interrupt that is the device's own.
fn interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

/// `LNRO0005` is what Linux calls a virtio-mmio device in ACPI.
fn virtio_device(index: u32, code: &mut Vec<u8>) {
    let base = MMIO_DEVICES + u64::from(index) * MMIO_DEVICE_LEN;
    let registers = Memory32Fixed::new(true, base as u32, MMIO_DEVICE_LEN as u32); // Below 4 GiB, as the layout says.
    device(
        &format!("VR{index:02}"),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &index),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&registers, &interrupt(device_gsi(index))])),
        ],
        code,
    );
}

fn serial_port(code: &mut Vec<u8>) {
    let ports = IO::new(SERIAL_PORT, SERIAL_PORT, 1, 8);
    device(
        "COM1",
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &1u8),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports, &interrupt(SERIAL_GSI)])),
        ],
        code,
    );
}

/// The generation counter, and the event device whose interrupt says that it changed.
fn generation_counter(code: &mut Vec<u8>) {
    let (low, high) = (GENERATION_ADDRESS as u32, (GENERATION_ADDRESS >> 32) as u32);
    device(
        "VGEN",
        vec![
            &Name::new("_HID".into(), &"VMGENCTR"),
            &Name::new("_CID".into(), &"VM_GEN_COUNTER"),
            &Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &Name::new("ADDR".into(), &Package::new(vec![&low, &high])),
        ],
        code,
    );
    let (counter, changed): (Path, u8) = ("\\_SB_.VGEN".into(), 0x80);
    let notify = Notify::new(&counter, &changed);
    let is_ours = Equal::new(&aml::Arg(0), &GENERATION_GSI);
    let when_ours = If::new(&is_ours, vec![&notify]);
    device(
        "GED_",
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &0u8),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&interrupt(GENERATION_GSI)])),
            &Method::new("_EVT".into(), 1, true, vec![&when_ours]),
        ],
        code,
    );
}
