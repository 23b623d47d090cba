//! A stream becomes a checkpoint, or nothing does.

use crate::failure::Failure;
use crate::out;
use pando_store::{Checkpoint, Kind, LayerWriter, Machine, ManifestId, Store, Writer};
use pando_wire::saved::{Layer, LayerKind, PAGE_BYTES, Part, Reader};
use std::io::{self, Read};
use std::path::Path;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

pub(super) fn run(store: &Path, name: &str) -> Result<ExitCode, Failure> {
    let failed = |failure: Failure| failure.under(format!("cannot save checkpoint {name}"));
    let sizes = save(store, name, io::stdin().lock()).map_err(failed)?;
    out::print(&format!("{}\n", serde_json::to_string(&sizes)?))?;
    Ok(ExitCode::SUCCESS)
}

/// How large a checkpoint is, in bytes.
#[derive(Debug, serde::Serialize)]
struct Sizes {
    /// RAM and disk as the guest sees them.
    logical_bytes: u64,
    /// What the store has grown by.
    stored_bytes: u64,
}

fn save(store: &Path, name: &str, stream: impl Read) -> Result<Sizes, Failure> {
    let writer = Store::create(store)?.writer()?;
    let (machine, state, mut reader) = Reader::begin(stream)?;
    let layers = write_layers(&writer, &mut reader)?;
    let checkpoint = Checkpoint {
        name: name.to_owned(),
        created_ms: SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64, // For 500 million years.
        machine: Machine {
            kind: machine.kind,
            version: machine.version,
            arch: machine.arch,
            cpu_features: machine.cpu_features,
            state,
        },
        memory: layers.memory,
        disks: layers.disks,
    };
    writer.publish(&checkpoint)?;
    Ok(Sizes { logical_bytes: layers.logical_bytes, stored_bytes: writer.new_bytes() })
}

#[derive(Default)]
struct Layers {
    memory: Option<ManifestId>,
    disks: Vec<ManifestId>,
    logical_bytes: u64,
}

impl Layers {
    fn end(&mut self, layer: Option<(LayerKind, LayerWriter<'_>)>) -> Result<(), Failure> {
        match layer {
            Some((LayerKind::Memory, layer)) => self.memory = Some(layer.finish()?),
            Some((LayerKind::Disk, layer)) => self.disks.push(layer.finish()?),
            None => (), // The first one begins.
        }
        Ok(())
    }
}

/// Reads all layers. The reader sees to it that there is one of each.
fn write_layers(writer: &Writer, reader: &mut Reader<impl Read>) -> Result<Layers, Failure> {
    let (mut layers, mut current) = (Layers::default(), None);
    while let Some(part) = reader.next_part()? {
        match part {
            Part::Layer(Layer { kind, pages }) => {
                layers.end(current.take())?;
                let stored_kind = match kind {
                    LayerKind::Memory => Kind::Memory,
                    LayerKind::Disk => Kind::Disk,
                };
                current = Some((kind, writer.layer(stored_kind, pages)?));
                layers.logical_bytes += pages * PAGE_BYTES as u64; // The reader has bounded it.
            }
            Part::Pages(first, bytes) => {
                if let Some((_, layer)) = &mut current {
                    layer.write(first, bytes)?;
                }
            }
        }
    }
    layers.end(current)?;
    Ok(layers)
}
