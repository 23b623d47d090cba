use super::*;
use crate::contract::device_contract;

const DATA: u8 = 0;
const INTERRUPT_ENABLE: u8 = 1;
const INTERRUPT_IDENTIFICATION: u8 = 2;
const LINE_CONTROL: u8 = 3;
const MODEM_CONTROL: u8 = 4;
const LINE_STATUS: u8 = 5;
const SCRATCH: u8 = 7;

const DIVISOR_LATCH: u8 = 0x80;
const LOOPBACK: u8 = 0x10;

device_contract!(serial, new: Serial::new(),
    change: |serial: &mut Serial| { let _ = serial.write(SCRATCH, 0x5a); },
    restore: |state| Serial::restore(state).unwrap().0);

#[test]
fn a_byte_written_is_a_byte_sent() {
    let mut serial = Serial::new();
    assert_eq!(serial.write(DATA, b'x'), SerialEffect { output: Some(b'x'), interrupt: false });
    assert_eq!(serial.read(LINE_STATUS) & 0x60, 0x60, "the transmitter is idle again at once");
}

#[test]
fn an_open_divisor_latch_takes_the_byte_instead() {
    let mut serial = Serial::new();
    assert_eq!(serial.write(LINE_CONTROL, DIVISOR_LATCH), SerialEffect::default());
    assert_eq!(serial.write(DATA, 3), SerialEffect::default());
    assert_eq!(serial.read(DATA), 3);
    assert_eq!(serial.state().divisor_low, 3);
}

#[test]
fn an_empty_transmitter_interrupts_when_that_is_enabled() {
    let mut serial = Serial::new();
    assert!(serial.write(INTERRUPT_ENABLE, 0b10).interrupt);
    assert_eq!(serial.read(INTERRUPT_IDENTIFICATION) & 0x0f, 0b0010);
    assert_eq!(serial.write(DATA, b'y'), SerialEffect { output: Some(b'y'), interrupt: true });
}

#[test]
fn loopback_sends_nothing_and_loses_what_does_not_fit() {
    let mut serial = Serial::new();
    let _ = serial.write(MODEM_CONTROL, LOOPBACK);
    for byte in 0..100 {
        assert_eq!(serial.write(DATA, byte).output, None);
    }
    let back: Vec<u8> = (0..64).map(|_| serial.read(DATA)).collect();
    assert_eq!(back, (0..64).collect::<Vec<u8>>());
    assert_eq!(serial.read(LINE_STATUS) & 1, 0, "no more data");
}

#[test]
fn an_interrupt_on_its_way_is_raised_again_after_a_restore() {
    let mut serial = Serial::new();
    let _ = serial.write(INTERRUPT_ENABLE, 0b10);
    let (_, interrupt) = Serial::restore(serial.state()).unwrap();
    assert!(interrupt);
    let _ = serial.read(INTERRUPT_IDENTIFICATION);
    let (_, interrupt) = Serial::restore(serial.state()).unwrap();
    assert!(!interrupt, "the guest has seen it");
}

#[test]
fn registers_that_are_not_there_read_as_zero() {
    let mut serial = Serial::new();
    assert_eq!(serial.read(200), 0);
    assert_eq!(serial.write(200, 1), SerialEffect::default());
}

#[test]
fn a_tampered_state_is_refused_by_name() {
    let spoilt = |spoil: fn(&mut SerialState)| {
        let mut state = Serial::new().state();
        spoil(&mut state);
        Serial::restore(state).unwrap_err()
    };
    assert_eq!(spoilt(|state| state.interrupt_enable = 0x10), SerialStateError::InterruptEnable(0x10));
    assert_eq!(spoilt(|state| state.interrupt_identification = 0xc1), SerialStateError::InterruptIdentification(0xc1));
    assert_eq!(spoilt(|state| state.line_status = 0), SerialStateError::LineStatus(0));
    assert_eq!(spoilt(|state| state.input = vec![1]), SerialStateError::LineStatus(0x60));
    assert_eq!(spoilt(|state| state.input = vec![0; 65]), SerialStateError::InputTooLong);
}
