//! The terminal that `exec -t` lends to a program: raw while it runs, and as before on every way out.

use pando_wire::agent::WindowSize;
use rustix::termios::{self, OptionalActions, Termios};
use std::io::{self, IsTerminal};
use std::sync::{Mutex, Once, PoisonError};

/// How the terminal was. A static, because the panic hook must find it: a release build aborts without dropping.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// A raw terminal on standard input, restored when dropped.
#[derive(Debug)]
pub(crate) struct Raw(());

impl Raw {
    /// Makes the terminal raw; `None` when standard input is none.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        static HOOK: Once = Once::new();
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        HOOK.call_once(|| {
            let print = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                restore();
                print(panic);
            }));
        });
        let before = termios::tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let entered = Self(()); // From here on, dropping it restores.
        termios::tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Some(entered))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal back as it was, once.
fn restore() {
    if let Ok(mut before) = BEFORE.try_lock()
        && let Some(before) = before.take()
    {
        // A terminal that is gone needs no restoring.
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, &before);
    }
}

/// The size of the terminal that the output goes to, or the customary one.
pub(crate) fn size() -> WindowSize {
    let sizes = [termios::tcgetwinsize(io::stdout()), termios::tcgetwinsize(io::stdin())];
    let known = sizes.into_iter().flatten().find(|size| size.ws_row > 0 && size.ws_col > 0);
    known.map_or(WindowSize { rows: 24, columns: 80 }, |size| WindowSize { rows: size.ws_row, columns: size.ws_col })
}
