//! A stream becomes a checkpoint, or nothing does.

use crate::failure::Failure;
use crate::out;
use pando_store::{Checkpoint, Kind, Layer, LayerWriter, Machine, ManifestId, Store, Writer};
use pando_wire::saved::{self, LayerKind, PAGE_BYTES, Part, Reader};
use std::io::{self, Read};
use std::path::Path;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

pub(super) fn run(store: &Path, name: &str, since: Option<&str>) -> Result<ExitCode, Failure> {
    let failed = |failure: Failure| failure.under(format!("cannot save checkpoint {name}"));
    let sizes = save(store, name, since, io::stdin().lock()).map_err(failed)?;
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
    /// What of it was read and hashed.
    hashed_bytes: u64,
}

fn save(store: &Path, name: &str, since: Option<&str>, stream: impl Read) -> Result<Sizes, Failure> {
    let store = Store::create(store)?;
    let writer = store.writer()?;
    let earlier = since.map(|since| Earlier::open(&store, since)).transpose()?;
    let (machine, state, mut reader) = Reader::begin(stream)?;
    let layers = write_layers(&writer, earlier.as_ref(), &mut reader)?;
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
    let (stored_bytes, hashed_bytes) = (writer.new_bytes(), writer.hashed_bytes());
    Ok(Sizes { logical_bytes: layers.logical_bytes, stored_bytes, hashed_bytes })
}

/// The layers of an earlier checkpoint, which stay in the store as long as this is there.
struct Earlier {
    memory: Option<Layer>,
    disk: Option<Layer>,
}

impl Earlier {
    fn open(store: &Store, name: &str) -> Result<Self, Failure> {
        let opened = store.open_checkpoint(name)?;
        let disk = opened.checkpoint().disks.first().map(|id| opened.layer(*id)).transpose()?;
        Ok(Self { memory: opened.memory()?, disk })
    }

    fn layer(&self, kind: LayerKind) -> Option<&Layer> {
        match kind {
            LayerKind::Memory => self.memory.as_ref(),
            LayerKind::Disk => self.disk.as_ref(),
        }
    }
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
fn write_layers(writer: &Writer, earlier: Option<&Earlier>, reader: &mut Reader<impl Read>) -> Result<Layers, Failure> {
    let (mut layers, mut current) = (Layers::default(), None);
    while let Some(part) = reader.next_part()? {
        match part {
            Part::Layer(saved::Layer { kind, pages }) => {
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
            Part::Same(first, pages) => {
                if let Some((kind, layer)) = &mut current {
                    let known = earlier.and_then(|earlier| earlier.layer(*kind));
                    let known = known.ok_or_else(|| Failure::new("nobody knows what it is the same as"))?;
                    layer.inherit(known, first..first + pages)?; // The reader has bounded it.
                }
            }
        }
    }
    layers.end(current)?;
    Ok(layers)
}

#[cfg(test)]
mod tests {
    use pando_store::Tuning;
    use pando_wire::saved::GROUP_PAGES;

    #[test]
    fn what_is_the_same_as_earlier_is_said_of_whole_chunks() {
        assert_eq!(
            u64::from(Tuning::default().chunk_pages),
            GROUP_PAGES,
            "or the rest of a chunk is read from the store"
        );
    }
}
