//! Where the pages go that a guest does not use.

use crate::server::Arriving;
use pando_devices::virtio::balloon::FreePages;
use pando_memory::HugePages;
use std::ops::Range;
use std::sync::Arc;
use vm_memory::GuestMemoryMmap;

/// Gives them to the host's kernel. What they held in a parent or a child of this VM stays there: the memory is shared
/// copy-on-write, and only this process's view of it ends.
pub(crate) struct ToHost {
    pub(crate) memory: GuestMemoryMmap,
    /// What brings the memory, where it is not all there.
    pub(crate) arriving: Option<Arc<Arriving>>,
    /// What makes huge pages of it.
    pub(crate) huge: HugePages,
}

impl FreePages for ToHost {
    fn give_back(&self, pages: Range<u32>) {
        if let Some(arriving) = &self.arriving {
            // First: what is on its way would come after all.
            arriving.pager.discard(&[(pages.start, pages.end - pages.start)]);
        }
        // What the host does not take is still the guest's, as if it had not been reported.
        let _ = self.huge.while_none_is_made(|| pando_sys::give_back(&self.memory, pages));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::PageServer;
    use pando_memory::pager::{FetchError, Fetched, PageSource, Pager, Spec, Wanted};
    use pando_sys::{Userfault, guest_memory};
    use pando_wire::pages::Client;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::{Receiver, channel};
    use std::sync::{Barrier, Mutex};
    use std::time::Duration;
    use vm_memory::{Bytes, GuestAddress};

    const PAGES: u64 = 512;

    /// All pages hold ones. It answers when it is told to.
    struct Ones {
        is_asked: Arc<Barrier>,
        answers: Mutex<Receiver<()>>,
    }

    impl PageSource for Ones {
        fn chunk_pages(&self) -> u32 {
            PAGES as u32
        }

        fn fetch(&self, wanted: &Wanted, fetched: &mut Fetched) -> Result<(), FetchError> {
            self.is_asked.wait();
            self.answers.lock().unwrap().recv().unwrap();
            fetched.data(wanted.pages.len() as u32)?.fill(1);
            Ok(())
        }
    }

    #[test]
    fn what_is_given_back_while_memory_arrives_does_not_come_after_all() {
        let memory = guest_memory(&[(0, PAGES * 4096)]).unwrap();
        let (answer, answers) = channel();
        let (tell, ends) = channel();
        let is_asked = Arc::new(Barrier::new(2));
        let ones = Ones { is_asked: Arc::clone(&is_asked), answers: Mutex::new(answers) };
        let userfault = Userfault::new(memory.clone()).unwrap();
        let pager = Pager::start(userfault, ones, Spec::default(), move |_| tell.send(()).unwrap()).unwrap();
        pager.begin_fill();
        let clients = [(); 2].map(|()| Client::new(UnixStream::pair().unwrap().0));
        let server = Arc::new(PageServer::new(clients.into(), 1));
        let huge = HugePages::of(memory.clone());
        let to_host = ToHost { memory: memory.clone(), arriving: Some(Arc::new(Arriving { pager, server })), huge };

        is_asked.wait(); // For all of it.
        to_host.give_back(100..200);
        answer.send(()).unwrap();
        ends.recv_timeout(Duration::from_secs(60)).unwrap();
        to_host.give_back(300..301); // Nothing arrives any more.
        let read = [99, 100, 199, 200, 300, 301].map(|page| memory.read_obj::<u8>(GuestAddress(page * 4096)).unwrap());
        assert_eq!(read, [1, 0, 0, 1, 0, 1]);
    }
}
