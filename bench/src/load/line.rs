//! The open loop of one thread: operations become due when their time comes, whether or not a
//! connection is free, and are taken in order by whoever is free next. Latency is counted from the
//! intended time, so a server that stalls can not hide the wait of those behind (coordinated
//! omission).

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use crate::load::arrivals::{Arrivals, Due};

/// Who waits, as two counts: no list, so that its length needs no limit.
pub(super) struct Line {
    arrivals: RefCell<Arrivals>,
    due: Cell<u64>,
    taken: Cell<u64>,
    /// When the last one became due.
    ended: Cell<Option<Instant>>,
    free: Notify,
}

impl Line {
    pub(super) fn new(arrivals: Arrivals) -> Self {
        Self {
            arrivals: RefCell::new(arrivals),
            due: Cell::new(0),
            taken: Cell::new(0),
            ended: Cell::new(None),
            free: Notify::new(),
        }
    }

    /// The next operation, once it is due; `None` after the last one, and when those that are left
    /// have waited too long after the end.
    pub(super) async fn next(&self) -> Option<Due> {
        loop {
            let ended = self.ended.get();
            if ended.is_some_and(|ended| ended.elapsed() > DRAIN_MAX) {
                return None;
            }
            if self.taken.get() < self.due.get() {
                self.taken.set(self.taken.get() + 1);
                return self.arrivals.borrow_mut().next();
            }
            if ended.is_some() {
                return None;
            }
            self.free.notified().await;
        }
    }

    /// How many were never taken.
    pub(super) fn left(&self) -> u64 {
        self.due.get() - self.taken.get()
    }

    /// Lets operations become due until the last one has.
    ///
    /// # Errors
    /// If the kernel gives no timer.
    pub(super) async fn run(&self, began: Instant) -> io::Result<()> {
        let timer = Timer::new()?;
        let ahead = self.arrivals.borrow().clone();
        for (count, due) in (1u64..).zip(ahead) {
            let at = began + due.at;
            let ahead = at.saturating_duration_since(Instant::now());
            if !ahead.is_zero() {
                timer.wait(ahead).await?;
            } else if count % YIELD_EVERY == 0 {
                tokio::task::yield_now().await;
            }
            self.due.set(count);
            self.free.notify_one();
        }
        self.ended.set(Some(Instant::now()));
        self.free.notify_waiters();
        Ok(())
    }
}

/// The kernel's timer: tokio's own has whole milliseconds, and a request takes a tenth of one.
struct Timer(AsyncFd<OwnedFd>);

impl Timer {
    #[allow(
        deprecated,
        reason = "the constructor that replaces it is unsafe, because a type may change its \
                  descriptor while registered; OwnedFd has one, and keeps it until it is dropped"
    )]
    fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self(AsyncFd::new(timerfd_create(TimerfdClockId::Monotonic, flags)?)?))
    }

    async fn wait(&self, ahead: Duration) -> io::Result<()> {
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Timespec::try_from(ahead).map_err(|_| io::ErrorKind::InvalidInput)?;
        let once = Itimerspec { it_interval: zero, it_value: value };
        timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::empty(), &once)?;
        loop {
            let mut ready = self.0.readable().await?;
            let mut expirations = [0u8; 8];
            let read = ready.try_io(|timer| Ok(rustix::io::read(timer, &mut expirations)?));
            match read {
                Ok(read) => return read.map(drop),
                Err(_would_block) => {}
            }
        }
    }
}

/// Those still in line are served for this long after the last one became due.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// When many are due at once, others get their turn in between.
const YIELD_EVERY: u64 = 64;
