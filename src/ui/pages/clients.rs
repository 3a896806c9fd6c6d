//! The clients of the store, by user.

use crate::ui::markup::Main;
use crate::ui::view::Client;
use crate::ui::words::{bytes, count, millis};
use maud::html;

/// Events that have waited for longer than this are worth a warning, in milliseconds.
const SLOW_MS: u64 = 1000;

pub(super) fn main(clients: Option<&[Client]>) -> Main {
    let mut main = Main::default();
    main.raw("<h1>Clients</h1>");
    main.live("clients", html! {
        section #clients {
            @match clients {
                None => p.quiet { "The store is another process, which alone knows its clients." },
                Some([]) => p.quiet { "No client is connected." },
                Some(clients) => {
                    p { "The connections of the store by the user of their certificate, or else by their address." }
                    div.scroll {
                        table {
                            thead {
                                tr {
                                    th { "User" } th.number { "Connections" } th.number { "Watchers" } th.number { "Slowest watcher" }
                                    th.number { "Not taken yet" } th.number { "Sent" } th.number { "Refused" }
                                }
                            }
                            tbody {
                                @for client in clients {
                                    tr {
                                        th scope="row" { (client.user) }
                                        td.number { (count(client.connections as u64)) }
                                        td.number { (count(client.watchers as u64)) }
                                        td.number {
                                            @if client.slowest_watcher_ms == 0 { "no lag" }
                                            @else if client.slowest_watcher_ms > SLOW_MS {
                                                span.state.warn { span.sign aria-hidden="true" { "▲" } " " (millis(client.slowest_watcher_ms as f64)) }
                                            }
                                            @else { (millis(client.slowest_watcher_ms as f64)) }
                                        }
                                        td.number { (bytes(client.unsent_bytes as u64)) }
                                        td.number { (bytes(client.sent_bytes)) }
                                        td.number { (count(client.refused)) }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    });
    main
}
