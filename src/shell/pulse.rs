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

use std::time::Duration;

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

/// Lets the executor look at sockets, files and timers, and other tasks run.
pub(crate) async fn look_at_kernel() {
    // Only a look at the kernel finds out that a timer is over.
    Timer::new(Duration::ZERO).await;
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
            while !done.get() {
                look_at_kernel().await;
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
