//! The command as a user meets it: the built program, against a daemon and an agent that answer what a test tells
//! them to. No VM is run here; real guests are tested elsewhere.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod agent; // a guest's agent
mod daemon; // the daemon that answers
mod pando; // the program and what came of it

mod checkpoints; // checkpoint, and run --from
mod exec;
mod files; // run's images and cp
mod help; // golden files: what every --help says
mod lists; // ls, tree, inspect, images, events, logs
mod lives; // run, fork, stop and the like
mod starting; // which daemon, and starting one
