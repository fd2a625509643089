//! A template process and its workers in a sandbox that is somewhere else.
//!
//! One task owns the stream to the sandbox's [relay](super::relay). It ends with the stream, and with it everything at
//! the far end.

use std::ops::ControlFlow;
use std::time::Duration;

use tokio::sync::mpsc;

use super::host::{FromTemplate, Order};
use super::message::{Exit, Outgoing};
use super::output::last_lines;
use super::relay::{Heard, Stream};
use super::roll::{Roll, TAIL_LINES, lacks_pytest, next};

/// How long the template may take to end when it is told to.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(5);

/// Owns the stream to a sandbox.
pub(super) struct Far {
    pub stream: Stream,
    pub roll: Roll,
    pub inbox: mpsc::UnboundedReceiver<Order>,
    /// Where the sandbox is, for people.
    pub place: String,
}

impl Far {
    pub async fn run(mut self) {
        let now = loop {
            tokio::select! {
                heard = self.stream.next() => match heard {
                    Ok(heard) => self.on_heard(heard),
                    Err(reason) => {
                        self.on_loss(&reason);
                        break true;
                    }
                },
                step = self.roll.step(&mut self.inbox) => if let ControlFlow::Break(now) = step {
                    break now;
                },
            }
        };
        if !now {
            self.shut_down().await;
        }
        if now {
            // Whoever destroys the sandbox sees to the rest.
            self.stream.fail("the run has ended");
        } else {
            self.stream.finish().await;
        }
    }

    fn on_heard(&mut self, heard: Heard) {
        match heard {
            Heard::Connected(link) => self.roll.greet(link),
            Heard::Ended(exit, words) => self.on_end(exit, &words),
            Heard::Output(text) => {
                self.roll.pass_on("data", format!("[\"output\",{}]", serde_json::Value::from(text)));
            }
            Heard::Started(directory) => self.roll.directory = directory,
        }
    }

    /// The template is gone, and the sandbox is not.
    fn on_end(&mut self, exit: Exit, words: &str) {
        self.roll.hear_the_rest();
        let place = &self.place;
        let text = if !exit.is_known() {
            format!("The template process of pytest cannot be started in {place}: {words}")
        } else if lacks_pytest(words) {
            format!(
                "There is no pytest for the Python in {place}. Install it there: by hand, in the image, or by \
                 `sandbox_init_cmd` in [offload]; if it is there for another Python, let `command` in [framework] \
                 name that one"
            )
        } else {
            let words = last_lines(words, TAIL_LINES);
            let words = if words.is_empty() { words } else { format!("\nThe last that it wrote:\n{words}") };
            format!("The template process of pytest in {place} ended ({exit}).{words}")
        };
        self.roll.end(&format!("the template process ended ({exit})"), FromTemplate::Ended(text));
    }

    fn on_loss(&mut self, reason: &str) {
        self.roll.hear_the_rest();
        let reason = format!("{} was lost: {reason}", self.place);
        self.stream.fail(&reason);
        self.roll.end(&reason, FromTemplate::Lost(reason.clone()));
    }

    /// Has the template end in peace.
    async fn shut_down(&mut self) {
        let Some(link) = &mut self.roll.link else { return };
        link.send(&Outgoing::Shutdown);
        let patience = tokio::time::sleep(SHUTDOWN_PATIENCE);
        tokio::pin!(patience);
        loop {
            tokio::select! {
                heard = self.stream.next() => match heard {
                    Ok(Heard::Ended(..)) | Err(_) => return,
                    Ok(heard) => self.on_heard(heard),
                },
                said = next(&mut self.roll.link) => self.roll.on_template(said),
                () = &mut patience => return,
            }
        }
    }
}
