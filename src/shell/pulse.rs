//! Two work-arounds for how glommio 0.9 turns between tasks and the kernel.
//!
//! **It may sleep on tasks that could run.** `LocalExecutor::run_task_queues` asks whether it is
//! time to look at the kernel before it runs the first task, and if so says that nothing ran; the
//! executor then takes itself for idle and parks. It is time whenever the preemption timer is
//! over, as on a busy machine, where the thread itself had to wait, or when another thread's
//! wake-up comes in at just that moment. What could run then waits for whatever wakes the
//! executor next. So something does, soon: a timer, each millisecond while the core is busy, and
//! less and less often while it is not.
//!
//! **It looks at the kernel only when no task can run** or when the preemption timer is over. A
//! task that always finds more to do (a queue that others fill) has to let the kernel be looked
//! at; a yield goes no further than the other tasks.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_lite::future::yield_now;
use glommio::timer::Timer;

const PULSE_MIN: Duration = Duration::from_millis(1);
const PULSE_MAX: Duration = Duration::from_millis(50);

/// Wakes the executor again and again. `count` says how much the core has done so far.
pub(crate) async fn pulse(count: impl Fn() -> u64) {
    let (mut every, mut before) = (PULSE_MIN, count());
    let mut timer = Timer::new(every);
    loop {
        (&mut timer).await;
        let now = count();
        every = if now == before { (every * 2).min(PULSE_MAX) } else { PULSE_MIN };
        before = now;
        timer.reset(every);
    }
}

/// Lets other tasks run, and the executor look at sockets, files and timers.
pub(crate) async fn look_at_kernel() {
    // Only a look at the kernel finds out that a timer is over; one that is over when it is first
    // asked is not even begun.
    let mut timer = None;
    poll_fn(|cx| match &mut timer {
        None => {
            let mut fresh = Timer::new(A_LOOK);
            if Pin::new(&mut fresh).poll(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
            timer = Some(fresh);
            Poll::Pending
        }
        Some(timer) => Pin::new(timer).poll(cx).map(drop),
    })
    .await;
}

/// Longer than it takes to begin a timer, and shorter than it takes to look at the kernel.
const A_LOOK: Duration = Duration::from_micros(2);

/// How a task that takes what others put into a queue leaves room for the rest.
#[derive(Debug, Default)]
pub(crate) struct Breath {
    /// Turns since there was nothing to do.
    turns: u32,
}

/// How many turns may pass between two looks at the kernel.
const TURNS_MAX: u32 = 4;

impl Breath {
    /// Waits for work by `poll`.
    pub(crate) async fn wait(&mut self, mut poll: impl FnMut(&mut Context<'_>) -> Poll<()>) {
        poll_fn(|cx| {
            let polled = poll(cx);
            if polled.is_pending() {
                self.turns = 0;
            }
            polled
        })
        .await;
    }

    /// After a turn of work.
    pub(crate) async fn take(&mut self) {
        self.turns += 1;
        if self.turns.is_multiple_of(TURNS_MAX) {
            look_at_kernel().await;
        } else {
            yield_now().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use glommio::LocalExecutorBuilder;

    use super::*;

    #[test]
    fn a_task_without_end_lets_timers_pass() {
        let executor = LocalExecutorBuilder::default().io_memory(64 << 10).make().unwrap();
        executor.run(async {
            let done = Rc::new(Cell::new(false));
            let other = Rc::clone(&done);
            glommio::spawn_local(async move {
                Timer::new(Duration::from_millis(1)).await;
                other.set(true);
            })
            .detach();
            let mut breath = Breath::default();
            while !done.get() {
                breath.wait(|_| Poll::Ready(())).await;
                breath.take().await;
            }
        });
    }

    #[test]
    fn the_pulse_beats_while_there_is_something_to_do() {
        let executor = LocalExecutorBuilder::default().io_memory(64 << 10).make().unwrap();
        executor.run(async {
            let count = Rc::new(Cell::new(0));
            let counted = Rc::clone(&count);
            let pulse = glommio::spawn_local(pulse(move || {
                counted.set(counted.get() + 1);
                counted.get()
            }));
            while count.get() < 10 {
                look_at_kernel().await;
            }
            pulse.cancel().await;
        });
    }
}
