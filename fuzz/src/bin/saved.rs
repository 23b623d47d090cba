//! A saved machine that is the input. What is read of it is written and read once more, and must be the same.
#![no_main]

use pando_wire::saved::{Machine, Part, Reader, Writer};
use std::io;

#[derive(Debug, PartialEq)]
enum Owned {
    Layer(pando_wire::saved::Layer),
    Pages(u64, Vec<u8>),
    Same(u64, u64),
}

type Saved = (Machine, Vec<u8>, Vec<Owned>);

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(saved) = read(data) else { return };
    let written = write(&saved).expect("what was read can be written");
    assert_eq!(read(&written).expect("what was written can be read"), saved);
});

fn read(bytes: &[u8]) -> io::Result<Saved> {
    let (machine, state, mut reader) = Reader::begin(bytes)?;
    let mut parts = Vec::new();
    while let Some(part) = reader.next_part()? {
        parts.push(match part {
            Part::Layer(layer) => Owned::Layer(layer),
            Part::Pages(first, bytes) => Owned::Pages(first, bytes.to_vec()),
            Part::Same(first, pages) => Owned::Same(first, pages),
        });
    }
    Ok((machine, state, parts))
}

fn write((machine, state, parts): &Saved) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut writer = Writer::begin(&mut bytes, machine.clone(), state)?;
    for part in parts {
        match part {
            Owned::Layer(layer) => writer.layer(layer.kind, layer.pages)?,
            Owned::Pages(first, bytes) => writer.pages(*first, bytes)?,
            Owned::Same(first, pages) => writer.same(*first, *pages)?,
        }
    }
    writer.end()?;
    Ok(bytes)
}
