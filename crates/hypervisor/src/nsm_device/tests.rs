//! The device against a driver in memory, with modules that show what they were asked.

use std::sync::{Arc, Mutex as StdMutex};

use proptest::prelude::*;
use vm_memory::GuestAddressSpace;

use super::*;
use crate::vhost_user::test_ring::{self, Descriptor, QUEUE, TestRing};

const MEMORY: usize = 0x10_0000;
const REQUEST: u64 = 0x2_0000;
const REPLY: u64 = 0x4_0000;
/// What nsm.ko offers for replies.
const REPLY_LEN: u32 = 0x3000;

struct Driver {
    memory: Memory,
    ring: TestRing,
    vring: VringMutex<Memory>,
    queue: Queue,
    asked: Arc<StdMutex<Vec<Vec<u8>>>>,
}

impl Driver {
    /// With a module that answers `reply` to everything.
    fn new(reply: Vec<u8>) -> Self {
        let memory = test_ring::memory(MEMORY);
        let ring = TestRing::new(&memory, 0x1_0000);
        let vring = ring.vring();
        let asked = Arc::new(StdMutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        let module: Module = Box::new(move |request| {
            log.lock().unwrap().push(request.to_vec());
            reply.clone()
        });
        Self {
            memory,
            ring,
            vring,
            queue: Queue::new(module),
            asked,
        }
    }

    fn run(&mut self) {
        self.queue.run(&self.vring, &self.memory.memory());
    }

    fn request(&mut self, head: u16, bytes: &[u8]) {
        self.ring.write(REQUEST, bytes);
        let len = u32::try_from(bytes.len()).unwrap();
        self.ring.offer(head, &[Descriptor::readable(REQUEST, len)]);
    }

    fn reply_buffer(&mut self, head: u16, len: u32) {
        self.ring.offer(head, &[Descriptor::writable(REPLY, len)]);
    }

    fn asked(&self) -> Vec<Vec<u8>> {
        self.asked.lock().unwrap().clone()
    }

    fn returned(&mut self) -> Vec<(u16, usize)> {
        std::iter::from_fn(|| self.ring.take()).collect()
    }
}

#[test]
fn request_and_reply_come_back_together_and_in_order() {
    let mut driver = Driver::new(b"the answer".to_vec());
    for round in 0..1000 {
        let (first, second) = (round % QUEUE / 2, QUEUE / 2 + round % QUEUE / 2);
        driver.request(first, b"a question");
        driver.reply_buffer(second, REPLY_LEN);
        driver.run();
        assert_eq!(driver.returned(), [(first, 0), (second, 10)]);
        assert_eq!(driver.ring.read(REPLY, 10), b"the answer");
    }
    assert_eq!(driver.asked(), vec![b"a question".to_vec(); 1000]);
}

#[test]
fn a_request_waits_for_its_reply_buffer() {
    let mut driver = Driver::new(b"answer".to_vec());
    driver.request(7, b"question");
    driver.run();
    assert_eq!(driver.returned(), [], "the driver would be woken too early");
    driver.reply_buffer(9, REPLY_LEN);
    driver.run();
    assert_eq!(driver.returned(), [(7, 0), (9, 6)]);
}

#[test]
fn a_reply_buffer_without_a_request_comes_back_empty() {
    let mut driver = Driver::new(b"answer".to_vec());
    driver.reply_buffer(9, REPLY_LEN);
    driver.run();
    assert_eq!(driver.returned(), [(9, 0)]);
    assert!(driver.asked().is_empty());
}

#[test]
fn a_request_overtaken_by_another_comes_back_unanswered() {
    let mut driver = Driver::new(b"answer".to_vec());
    driver.request(1, b"first");
    driver.run();
    driver.request(2, b"second");
    driver.reply_buffer(3, REPLY_LEN);
    driver.run();
    assert_eq!(driver.returned(), [(1, 0), (2, 0), (3, 6)]);
    assert_eq!(driver.asked(), [b"second".to_vec()]);
}

#[test]
fn a_chain_with_both_is_answered_in_place() {
    let mut driver = Driver::new(b"answer".to_vec());
    driver.ring.write(REQUEST, b"question");
    let chain = [
        Descriptor::readable(REQUEST, 3),
        Descriptor::readable(REQUEST + 3, 5),
        Descriptor::writable(REPLY, 4),
        Descriptor::writable(REPLY + 100, 4),
    ];
    driver.ring.offer(0, &chain);
    driver.run();
    assert_eq!(driver.returned(), [(0, 6)]);
    assert_eq!(driver.asked(), [b"question".to_vec()]);
    assert_eq!(driver.ring.read(REPLY, 4), b"answ");
    assert_eq!(driver.ring.read(REPLY + 100, 2), b"er");
}

#[test]
fn the_module_sees_one_byte_more_than_is_allowed_but_no_more() {
    let sizes = [
        (MAX_REQUEST - 1, MAX_REQUEST - 1),
        (MAX_REQUEST, MAX_REQUEST),
    ];
    let beyond = [
        (MAX_REQUEST + 1, MAX_REQUEST + 1),
        (MAX_REQUEST + 5000, MAX_REQUEST + 1),
    ];
    for (sent, seen) in sizes.into_iter().chain(beyond) {
        let mut driver = Driver::new(Vec::new());
        driver.request(0, &vec![1; sent]);
        driver.reply_buffer(1, REPLY_LEN);
        driver.run();
        assert_eq!(driver.asked()[0].len(), seen);
    }
}

#[test]
fn a_reply_that_does_not_fit_is_replaced_by_an_error_that_does() {
    let error = b"\xa1\x65Error\x6eBufferTooSmall";
    for (capacity, expected) in [
        (100, 100),
        (99, error.len()),
        (error.len(), error.len()),
        (21, 0),
    ] {
        let mut driver = Driver::new(vec![5; 100]);
        driver.request(0, b"question");
        driver.reply_buffer(1, u32::try_from(capacity).unwrap());
        driver.run();
        assert_eq!(
            driver.returned(),
            [(0, 0), (1, expected)],
            "capacity {capacity}"
        );
        if expected == error.len() {
            assert_eq!(driver.ring.read(REPLY, expected), error);
        }
    }
}

#[test]
fn buffers_outside_memory_do_no_harm() {
    let mut driver = Driver::new(b"answer".to_vec());
    let outside = u64::try_from(MEMORY).unwrap();
    driver
        .ring
        .offer(0, &[Descriptor::readable(outside - 4, 8)]);
    driver
        .ring
        .offer(1, &[Descriptor::writable(outside - 4, 8)]);
    driver
        .ring
        .offer(2, &[Descriptor::readable(u64::MAX, u32::MAX)]);
    driver.reply_buffer(3, REPLY_LEN);
    driver.run();
    assert_eq!(driver.returned(), [(0, 0), (1, 0), (2, 0), (3, 6)]);
    assert_eq!(
        driver.asked(),
        [b""; 2],
        "an unreadable request is an empty one"
    );
}

#[test]
fn a_reset_forgets_a_request_that_waits() {
    let mut driver = Driver::new(b"answer".to_vec());
    driver.request(0, b"question");
    driver.run();
    driver.queue.reset();
    driver.reply_buffer(1, REPLY_LEN);
    driver.run();
    assert_eq!(driver.returned(), [(1, 0)]);
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    let addr = prop_oneof![4 => 0x2_0000_u64..0x11_0000, 1 => any::<u64>()];
    let len = prop_oneof![4 => 0_u32..0x4000, 1 => any::<u32>()];
    (addr, len, 0_u16..8, 0_u16..300).prop_map(|(addr, len, flags, next)| Descriptor {
        addr,
        len,
        flags,
        next,
    })
}

proptest! {
    #[test]
    fn any_chains_come_back_but_for_one_request_that_waits(
        chains in prop::collection::vec(prop::collection::vec(descriptor(), 1..4), 1..60),
    ) {
        let mut driver = Driver::new(vec![7; 300]);
        for (slot, chain) in (0_u16..).zip(&chains) {
            driver.ring.offer(slot * 4, chain);
            driver.run();
        }
        let missing = driver.ring.published.wrapping_sub(driver.ring.returned());
        prop_assert!(missing <= 1, "{missing} chains were kept");
    }
}
