//! Who may send how much: each side tells the other the size of its buffer and how much of what it received it has
//! passed on. All counts are of bytes and wrap at 2³².

use std::num::Wrapping;

use super::BUFFER_BYTES;
use super::packet::Header;

/// Both sides' books of one connection.
#[derive(Debug, Default)]
pub(super) struct Credit {
    received: Wrapping<u32>,
    forwarded: Wrapping<u32>,
    told: Wrapping<u32>,
    sent: Wrapping<u32>,
    guest_buffer: u32,
    guest_forwarded: Wrapping<u32>,
}

/// The guest sent more than it was allowed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Overrun;

impl Credit {
    /// The guest's side of the books, which every packet of it carries.
    pub(super) fn heard(&mut self, header: &Header) {
        self.guest_buffer = header.buf_alloc;
        self.guest_forwarded = Wrapping(header.fwd_cnt);
    }

    /// How much may be sent to the guest. A guest that claims to have passed on what it never got has no room.
    pub(super) fn room_in_guest(&self) -> u32 {
        self.guest_buffer.saturating_sub((self.sent - self.guest_forwarded).0)
    }

    /// `len` bytes go to the guest.
    pub(super) fn send(&mut self, len: u32) {
        self.sent += len;
    }

    /// `len` bytes came from the guest.
    pub(super) fn receive(&mut self, len: u32) -> Result<(), Overrun> {
        let waiting = (self.received - self.forwarded).0;
        if len > BUFFER_BYTES.saturating_sub(waiting) {
            return Err(Overrun);
        }
        self.received += len;
        Ok(())
    }

    /// `len` of the bytes from the guest were passed on or thrown away.
    pub(super) fn forward(&mut self, len: u32) {
        self.forwarded += len;
    }

    /// Whether the guest may believe that there is much less room than there is.
    pub(super) fn has_news(&self) -> bool {
        (self.forwarded - self.told).0 >= BUFFER_BYTES / 4
    }

    /// The host's side of the books, for a packet that is being sent.
    pub(super) fn tell(&mut self, header: &mut Header) {
        header.buf_alloc = BUFFER_BYTES;
        header.fwd_cnt = self.forwarded.0;
        self.told = self.forwarded;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(buf_alloc: u32, fwd_cnt: u32) -> Header {
        Header { buf_alloc, fwd_cnt, ..Header::default() }
    }

    #[test]
    fn a_guest_gets_what_it_has_room_for() {
        let mut credit = Credit::default();
        assert_eq!(credit.room_in_guest(), 0, "it has not said anything");
        credit.heard(&heard(100, 0));
        credit.send(60);
        assert_eq!(credit.room_in_guest(), 40);
        credit.heard(&heard(100, 50));
        assert_eq!(credit.room_in_guest(), 90);
    }

    #[test]
    fn a_guest_that_claims_the_impossible_gets_nothing() {
        let mut credit = Credit::default();
        credit.send(10);
        credit.heard(&heard(1000, 11));
        assert_eq!(credit.room_in_guest(), 0);
        credit.heard(&heard(0, 10));
        assert_eq!(credit.room_in_guest(), 0);
    }

    #[test]
    fn counts_may_wrap() {
        let mut credit = Credit { sent: Wrapping(u32::MAX), forwarded: Wrapping(u32::MAX), ..Credit::default() };
        credit.received = credit.forwarded;
        credit.heard(&heard(100, u32::MAX - 9));
        credit.send(20);
        assert_eq!(credit.room_in_guest(), 71);
        assert_eq!(credit.receive(BUFFER_BYTES), Ok(()));
        credit.forward(BUFFER_BYTES);
        assert_eq!(credit.receive(1), Ok(()));
    }

    #[test]
    fn a_guest_may_fill_the_buffer_and_no_more() {
        let mut credit = Credit::default();
        assert_eq!(credit.receive(BUFFER_BYTES), Ok(()));
        assert_eq!(credit.receive(1), Err(Overrun));
        credit.forward(1);
        assert_eq!(credit.receive(1), Ok(()));
    }

    #[test]
    fn a_guest_hears_of_room_before_it_runs_out_of_it() {
        let mut credit = Credit::default();
        credit.forward(BUFFER_BYTES / 4 - 1);
        assert!(!credit.has_news());
        credit.forward(1);
        assert!(credit.has_news());
        let mut header = Header::default();
        credit.tell(&mut header);
        assert_eq!((header.buf_alloc, header.fwd_cnt), (BUFFER_BYTES, BUFFER_BYTES / 4));
        assert!(!credit.has_news());
    }
}
