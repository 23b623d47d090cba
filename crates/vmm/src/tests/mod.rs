mod ended; // a guest that has ended
mod fixture; // machines that earlier versions stored
mod fields; // a machine's state, field by field
mod law; // saved, restored and saved again, it is the same
mod networked; // one with a network card
mod resumed; // one that goes on
mod slept; // what goes on after it was kept
mod toys; // VMs with toy guests
