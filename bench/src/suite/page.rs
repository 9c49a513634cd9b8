//! The page of a results file, for an engineer who has never seen the project; and the short table
//! at the end of a run.

use std::fmt::Write as _;

use super::answers::{Counts, Latency};
use super::goals::{rows, thousands, told};
use super::plots::Drawn;
use super::results::{Figures, Goal, Results, Series, find, most};
use super::rounds::{HTTP2_CONNECTIONS, HTTP2_STREAMS};

/// The page as Markdown; `link` is where the plots are, seen from the page.
pub(crate) fn of(results: &Results, drawn: &[Drawn], link: &str) -> String {
    let page = Page { results, drawn, link };
    let mut out = String::new();
    for section in [
        page.head(),
        page.failed(),
        page.goals(),
        page.method(),
        page.machine(),
        page.side_by_side(),
        page.ratios(),
        page.peers(),
        page.layers(),
        page.latency(),
        page.http2(),
        page.revocation(),
        page.idle(),
        page.storm(),
        page.slow(),
        page.streaming(),
        page.day(),
        page.audit(),
        page.decision(),
        page.issuing(),
        page.commands(),
    ] {
        if !section.is_empty() {
            out.push_str(section.trim_end());
            out.push_str("\n\n");
        }
    }
    out.trim_end().to_owned() + "\n"
}

/// What is told at the end of a run.
pub(crate) fn summary(results: &Results) -> String {
    let mut out = String::from("\nCPU µs per operation, median of the rounds, X25519\n");
    let modes = ["keepalive", "handshake", "returning", "resumed"];
    line(&mut out, &format!("  {:<18}{}", "", modes.map(|mode| format!("{mode:>12}")).concat()));
    for system in SYSTEMS {
        let figures = modes.map(|mode| {
            let series = results.series(mode, "x25519", system);
            series.map_or(format!("{:>12}", "–"), |s| format!("{:>12.1}", s.median.cpu_us))
        });
        line(&mut out, &format!("  {system:<18}{}", figures.concat()));
    }
    out.push_str("\nratios\n");
    if results.side_by_side.is_empty() {
        out.push_str("  none: no systems were measured side by side\n");
    }
    for (name, ratio) in &results.ratios {
        line(&mut out, &format!("  {name:<36}{ratio:>8.3}"));
    }
    let refused = results.ratios_refused.iter().filter(|_| !results.side_by_side.is_empty());
    for (name, why) in refused {
        line(&mut out, &format!("  {name:<36} refused: {why}"));
    }
    out.push_str("\ngoals\n");
    let whole = results.only.is_empty();
    for goal in results.goals.iter().filter(|goal| whole || goal.measured.is_some()) {
        let found = goal.measured.as_deref().or(goal.why_not.as_deref()).unwrap_or("–");
        line(&mut out, &format!("  {:<8} {:<50} {:<34} {found}", met(goal), goal.row, goal.goal));
    }
    for failed in &results.failed {
        line(&mut out, &format!("\nFAILED {}: {}", failed.what, failed.why));
    }
    out
}

struct Page<'a> {
    results: &'a Results,
    drawn: &'a [Drawn],
    link: &'a str,
}

impl Page<'_> {
    fn head(&self) -> String {
        let results = self.results;
        let quick = if results.quick {
            "\n> **A quick run**: three rounds and short measurements, to see that everything \
             works. Figures of record come from a whole run (`make bench`).\n"
        } else {
            ""
        };
        let changes = if results.dirty == Some(true) { " with changes" } else { "" };
        format!(
            "# Measured\n\n\
             This page is made by `sekisho-bench report` from a results file; nobody writes its \
             figures. Run of {}, commit `{}`{changes}; made by `make bench`, method in \
             [README.md](README.md).\n{quick}\n\
             Sekisho's gateway lets a terminal in by its client certificate, checks the staff \
             member's token, decides by policy and the facts of the case, and records the \
             decision. Here it does all of that, beside nginx and HAProxy, which only terminate \
             mutual TLS and pass on who came.",
            results.started_at, results.commit
        )
    }

    fn failed(&self) -> String {
        if self.results.failed.is_empty() {
            return String::new();
        }
        let mut out = String::from("## Could not be measured\n\n");
        for failed in &self.results.failed {
            line(&mut out, &format!("- **{}**: {}", failed.what, escaped(&failed.why)));
        }
        out
    }

    fn goals(&self) -> String {
        let mut out = String::from(
            "## Goals\n\nEvery row of the goals table: with staff token, policy, facts and \
             asynchronous audit on our side, none of it on the peers' side.\n\n\
             | figure | goal | measured | distance | met |\n|---|---|---|---|---|\n",
        );
        let rows = rows(self.results);
        for goal in &rows {
            let text = |text: &Option<String>| escaped(text.as_deref().unwrap_or("–"));
            let Goal { row, goal: bound, measured, distance, .. } = goal;
            let (measured, distance) = (text(measured), text(distance));
            line(
                &mut out,
                &format!("| {row} | {bound} | {measured} | {distance} | {} |", met(goal)),
            );
        }
        let _ = writeln!(
            out,
            "\nThe gateway had {} registrations and {} revocations in memory where it was loaded; \
             the rows of the decision say how many they were measured with.",
            thousands(self.results.facts.registrations as f64),
            thousands(self.results.facts.revocations as f64)
        );
        let untold: Vec<&Goal> = rows.iter().filter(|goal| goal.why_not.is_some()).collect();
        if !untold.is_empty() {
            out.push_str("\nTo read with it, or not measured whole:\n\n");
            for goal in untold {
                let why = escaped(goal.why_not.as_deref().unwrap_or_default());
                line(&mut out, &format!("- *{}*: {why}.", goal.row));
            }
        }
        out
    }

    fn method(&self) -> String {
        let results = self.results;
        let rounds = results.side_by_side.iter().map(|series| series.rounds.len()).max();
        let facts = results.facts;
        format!(
            "## How it was measured\n\n\
             - One worker on core {} for the system that is measured; generator, back end and \
             facts publisher on core {}. All systems speak TLS 1.3, ask for a client certificate \
             (P-256, one intermediate), set identity headers, and keep connections to the same \
             back end on the same unix socket, which answers 1 KB of JSON and refuses requests \
             without identity headers.\n\
             - {} rounds; within a round each system in turn, in an order that turns from round to \
             round. Told are medians, with the least and the most of the rounds.\n\
             - The first figure is CPU time of the server's process per operation: it holds where \
             throughput does not. Where the server's process used less than 95 % of its core, \
             throughput is marked with †: the server could do more.\n\
             - Gateways are started anew in each round, so that a *new* terminal is one that the \
             process has never seen; each has settled and served 400 requests of other terminals \
             before it is measured. A *returning* one does a full handshake again; a *resumed* \
             one resumes its session.\n\
             - In the gateway's memory: {} terminals of {} offices, {} registrations, {} revoked \
             certificates.\n{}",
            results.pins.server_cpu,
            results.pins.load_cpu,
            rounds.unwrap_or_default(),
            thousands(facts.terminals as f64),
            thousands(facts.offices as f64),
            thousands(facts.registrations as f64),
            thousands(facts.revocations as f64),
            limits(&results.limits_changed)
        )
    }

    fn machine(&self) -> String {
        let machine = &self.results.machine;
        let mut out = String::from("## Machine and programs\n\n| | |\n|---|---|\n");
        let mut row = |name: &str, value: String| line(&mut out, &format!("| {name} | {value} |"));
        row("CPU", format!("{}, {} cores", machine.cpu, machine.cores));
        row("virtual machine", machine.virtualised.clone().unwrap_or_else(|| "no".to_owned()));
        row("memory", format!("{:.1} GiB", machine.memory_bytes as f64 / f64::from(1 << 30)));
        row("kernel", machine.kernel.clone());
        row("open files at most", thousands(machine.open_files_max as f64));
        let share = |value: Option<f64>| value.map_or("unknown".to_owned(), |v| format!("{v:.2}"));
        let (before, after) = (machine.load_average_before, machine.load_average_after);
        row("load average before, after", format!("{}, {}", share(before), share(after)));
        row("CPU time taken by other machines", share(machine.stolen_percent) + " %");
        for (name, version) in &self.results.software {
            row(name, escaped(version));
        }
        out.push_str("\n| part | seconds | budget |\n|---|---:|---:|\n");
        for part in &self.results.parts {
            let text = format!("| {} | {:.0} | {} |", part.part, part.seconds, part.budget_seconds);
            line(&mut out, &text);
        }
        out
    }

    fn side_by_side(&self) -> String {
        let mut out = String::from("## Side by side\n\n");
        self.plot(&mut out, "cpu", "CPU time per operation by mode and system");
        out.push_str(&series_table(&self.results.side_by_side));
        self.plot(&mut out, "throughput", "operations per second on one core");
        out
    }

    fn ratios(&self) -> String {
        let mut out = String::from(
            "## Ratios\n\nThe median of the rounds' own ratios; beside it the least and the \
             most of them. A ratio is told only of runs made side by side: the same run and \
             rounds, hardly a failed operation, resumed sessions where the name says so \
             and nowhere else.\n\n\
             | ratio | ours, µs | theirs, µs | ratio | within rounds \
             |\n|---|---:|---:|---:|---:|\n",
        );
        for (name, ratio) in &self.results.ratios {
            let Some(detail) = self.results.ratio_details.get(name) else { continue };
            line(
                &mut out,
                &format!(
                    "| `{name}` | {} | {} | **{ratio:.3}** | {:.3}–{:.3} |",
                    told(detail.ours_cpu_us),
                    told(detail.theirs_cpu_us),
                    detail.per_round_min,
                    detail.per_round_max
                ),
            );
        }
        for (name, why) in &self.results.ratios_refused {
            line(&mut out, &format!("| `{name}` | – | – | refused | {} |", escaped(why)));
        }
        out
    }

    fn peers(&self) -> String {
        let mut out = String::from(
            "## Are the peers fairly set up?\n\nTheir figures beside those of the trial that the \
             goals were set from (CPU µs per operation, another machine's day).\n\n\
             | mode | nginx now | nginx trial | HAProxy now | HAProxy trial |\n\
             |---|---:|---:|---:|---:|\n",
        );
        let now = |mode: &str, system| {
            self.results.series(mode, "x25519", system).map(|series| series.median.cpu_us)
        };
        let figure = |value: Option<f64>| value.map_or("–".to_owned(), told);
        let mut remarks = String::new();
        for trial in &TRIAL {
            let (nginx, haproxy) = (now(trial.mode, "nginx"), now(trial.mode, "haproxy"));
            line(
                &mut out,
                &format!(
                    "| {} | {} | {} | {} | {} |",
                    trial.mode,
                    figure(nginx),
                    span(trial.nginx),
                    figure(haproxy),
                    span(trial.haproxy)
                ),
            );
            if let Some((nginx, haproxy)) = nginx.zip(haproxy) {
                line(&mut remarks, &relation(trial, nginx / haproxy));
            }
        }
        out.push('\n');
        out + &remarks
    }

    fn layers(&self) -> String {
        let mut out = String::from(
            "## What each layer costs\n\nTransport: TLS, checks of the certificate and of HTTP's \
             framing, passing on. Policy: with the staff token, the facts and the decision. \
             Asynchronous audit: with the decision's record. Durable audit: the answer waits until \
             the record is on the disk.\n\n",
        );
        let layers = [
            ("gateway-transport", "transport"),
            ("gateway-policy", "+ policy"),
            ("gateway-async", "+ audit, asynchronous"),
            ("gateway-durable", "+ audit, durable instead (as shipped)"),
        ];
        out.push_str("| layer | keep-alive, µs | more | new terminal, µs | more |\n");
        out.push_str("|---|---:|---:|---:|---:|\n");
        let cpu = |mode: &str, system: &str| {
            self.results.series(mode, "x25519", system).map(|series| series.median.cpu_us)
        };
        let mut below: Option<&str> = None;
        for (system, name) in layers {
            let cells = ["keepalive", "handshake"].map(|mode| {
                let this = cpu(mode, system);
                let more = this.zip(below.and_then(|below| cpu(mode, below)));
                let more =
                    more.map_or("–".to_owned(), |(this, below)| format!("{:+.1}", this - below));
                format!("{} | {more}", this.map_or("–".to_owned(), told))
            });
            line(&mut out, &format!("| {name} | {} |", cells.join(" | ")));
            below = Some(system);
        }
        out.push('\n');
        self.plot(&mut out, "layers", "CPU time per operation by layer");
        out
    }

    fn latency(&self) -> String {
        let mut out = String::from(
            "## Added latency\n\nOpen loop at half of each system's own highest throughput, \
             latency counted from the moment at which a request should have been sent (so that a \
             slow answer also counts against the requests behind it). Added: through the system \
             minus straight to the back end at the same rate, in the same pair of measurements.\n\n\
             | system | requests/s | through: p50, p99 µs | straight: p50, p99 µs | added p50, \
             µs | added p99, µs |\n|---|---:|---:|---:|---:|---:|\n",
        );
        if self.results.open_loop.is_empty() {
            return String::new();
        }
        for open in &self.results.open_loop {
            line(
                &mut out,
                &format!(
                    "| {} | {} | {:.0}, {:.0} | {:.0}, {:.0} | {:.0} | {:.0} |",
                    open.system,
                    thousands(open.rate),
                    open.through.p50_us,
                    open.through.p99_us,
                    open.straight.p50_us,
                    open.straight.p99_us,
                    open.added.p50_us,
                    open.added.p99_us
                ),
            );
        }
        out.push('\n');
        self.plot(&mut out, "latency", "added latency");
        out
    }

    fn http2(&self) -> String {
        if self.results.http2.is_empty() {
            return String::new();
        }
        format!(
            "## HTTP/2\n\n{HTTP2_CONNECTIONS} connections with {HTTP2_STREAMS} requests each at \
             any time, in the same rounds as above.\n\n{}",
            series_table(&self.results.http2)
        )
    }

    fn revocation(&self) -> String {
        let results = self.results;
        if results.revocation_set.is_empty() && results.revocation_timing.is_none() {
            return String::new();
        }
        let mut out = String::from("## Revocation\n\n");
        if !results.revocation_set.is_empty() {
            line(
                &mut out,
                &format!(
                    "The gateway with {} revoked certificates beside the gateway without them, in \
                     pairs.\n\n| mode | pairs | with, µs | without, µs | median of the \
                     differences |\n\
                     |---|---:|---:|---:|---:|",
                    thousands(results.facts.revocations as f64)
                ),
            );
            for cost in &results.revocation_set {
                line(
                    &mut out,
                    &format!(
                        "| {} | {} | {} | {} | {:+.1} % |",
                        cost.mode,
                        cost.pairs.len(),
                        told(cost.with_us),
                        told(cost.without_us),
                        cost.change_percent
                    ),
                );
            }
            out.push('\n');
        }
        if let Some(timing) = &results.revocation_timing {
            line(
                &mut out,
                &format!(
                    "From the start of the revoking command to the first refusal or cut, {} \
                     certificates one after the other; {} were not refused.\n\n{LATENCY_HEAD}",
                    timing.revoked, timing.not_refused
                ),
            );
            for (name, latency) in [
                ("live HTTP/1.1 connection", timing.live_http1),
                ("live HTTP/2 connection", timing.live_http2),
                ("resumed session", timing.resumed),
                ("the command itself", timing.command),
            ] {
                line(&mut out, &latency_row(name, latency));
            }
        }
        out
    }

    fn idle(&self) -> String {
        if self.results.idle.is_empty() {
            return String::new();
        }
        let mut out = String::from(
            "## Idle connections\n\nResident memory of the server's process, without what the \
             kernel keeps for sockets; each connection had been used \
             once.\n\n| system | connections | \
             before, MiB | with them, MiB | KB each | errors |\n|---|---:|---:|---:|---:|---:|\n",
        );
        for idle in &self.results.idle {
            let answer = &idle.answer;
            let mib = |bytes: u64| format!("{:.1}", bytes as f64 / 1_048_576.0);
            let memory = answer.memory_bytes;
            let (before, after) = memory.map_or(("–".to_owned(), "–".to_owned()), |memory| {
                (mib(memory.before), mib(memory.peak))
            });
            let each = answer.bytes_per_connection.unwrap_or_default() / 1_000.0;
            line(
                &mut out,
                &format!(
                    "| {} | {} | {before} | {after} | {each:.1} | {} |",
                    idle.system,
                    thousands(answer.connections as f64),
                    counts(&answer.failures)
                ),
            );
        }
        out.push('\n');
        self.plot(&mut out, "memory", "memory per idle connection");
        out
    }

    fn storm(&self) -> String {
        let Some(storm) = &self.results.storm else { return String::new() };
        let established = &storm.established;
        let mut out = format!(
            "## Reconnect storm\n\n{} distinct terminals begin within a second, each with a full \
             handshake and a request; {} other connections are served before and meanwhile. {} \
             were answered in {:.1} s ({:.0}/s), {} retries, errors: {}; errors of the \
             established ones: {}.\n\n{LATENCY_HEAD}\n",
            thousands(storm.terminals as f64),
            established.connections,
            thousands(storm.answered as f64),
            storm.seconds,
            storm.per_second,
            storm.retries,
            counts(&storm.failures),
            counts(&established.failures)
        );
        for (name, latency) in [
            ("coming back, to the first answer", storm.time_to_answer),
            ("established, before", established.before),
            ("established, during the storm", established.during),
        ] {
            line(&mut out, &latency_row(name, latency));
        }
        out
    }

    fn slow(&self) -> String {
        let Some(slow) = &self.results.slow_clients else { return String::new() };
        let mut out = format!(
            "## Slow clients\n\n{} good connections, alone and beside {} slow clients of each \
             kind. Good ones: {:.0} requests/s alone, {:.0}/s beside them; errors: {}, {}.\n\n\
             {LATENCY_HEAD}\n",
            slow.good,
            slow.slow,
            slow.alone.per_second,
            slow.beside.per_second,
            counts(&slow.alone.failures),
            counts(&slow.beside.failures)
        );
        line(&mut out, &latency_row("good ones, alone", slow.alone.latency));
        line(&mut out, &latency_row("good ones, beside slow ones", slow.beside.latency));
        out.push_str(
            "\nWhat became of the slow ones while they were watched; those that were not closed \
             had more time than they were watched for: see the gateway's limits.\n\n\
             | kind | started | closed by the gateway | after, median s |\n",
        );
        out.push_str("|---|---:|---:|---:|\n");
        for kind in &slow.kinds {
            let after = kind.median_seconds_to_close;
            let after = after.map_or("–".to_owned(), |seconds| format!("{seconds:.1}"));
            let (name, started, closed) = (&kind.kind, kind.started, kind.closed_by_server);
            line(&mut out, &format!("| {name} | {started} | {closed} | {after} |"));
        }
        out
    }

    fn streaming(&self) -> String {
        if self.results.streaming.is_empty() {
            return String::new();
        }
        let bytes = self.results.streaming.iter().flat_map(|stream| &stream.rounds);
        let mib = bytes.map(|round| round.bytes).max().unwrap_or_default() as f64 / 1_048_576.0;
        let mut out = format!(
            "## Large bodies\n\nOne stream of {} MiB, in turn; medians.\n\n\
             | direction | system | rounds | MiB/s | CPU µs per MiB | memory more, MiB | errors |\n\
             |---|---|---:|---:|---:|---:|---:|\n",
            thousands(mib)
        );
        for stream in &self.results.streaming {
            let growth: Vec<f64> = stream
                .rounds
                .iter()
                .filter_map(|round| round.memory_bytes)
                .map(|memory| memory.peak.saturating_sub(memory.before) as f64 / 1_048_576.0)
                .collect();
            let growth = most(&growth).map_or("–".to_owned(), |mib| format!("{mib:.1}"));
            let errors: u64 =
                stream.rounds.iter().map(|round| round.failures.values().sum::<u64>()).sum();
            let cpu = stream.cpu_us_per_mib.map_or("–".to_owned(), |cpu| format!("{cpu:.0}"));
            line(
                &mut out,
                &format!(
                    "| {} | {} | {} | {:.0} | {cpu} | {growth} | {errors} |",
                    stream.direction,
                    stream.system,
                    stream.rounds.len(),
                    stream.mib_per_second
                ),
            );
        }
        out
    }

    fn day(&self) -> String {
        let Some(day) = &self.results.day else { return String::new() };
        let mut out = format!(
            "## Office day\n\nA day of the first tenth of a month, its hours shortened to {:.2} s: \
             mixed new, resumed and kept connections by the profile of the day, on {}. {} \
             answered, {} failed; {} µs of CPU time per request.\n\n{LATENCY_HEAD}\n{}\n\n",
            day.hour_ms as f64 / 1_000.0,
            day.system,
            thousands(day.answered as f64),
            thousands(day.failures as f64),
            day.cpu_us.map_or("–".to_owned(), |cpu| format!("{cpu:.1}")),
            latency_row("whole day", day.latency)
        );
        self.plot(&mut out, "day", "requests and latency by the hour");
        out
    }

    fn audit(&self) -> String {
        let Some(audit) = &self.results.audit else { return String::new() };
        let mut out = String::from(
            "## Audit\n\nRecords of decisions on this machine's disk; durable ones wait for \
             fdatasync, together with all that wait at the time.\n\n\
             | callers | records/s | p50, µs | p99, µs | CPU µs per record |\n\
             |---|---:|---:|---:|---:|\n",
        );
        for (name, appends) in [
            ("durable, 1", &audit.one_caller),
            ("durable, some", &audit.some_callers),
            ("durable, many", &audit.many_callers),
            ("asynchronous", &audit.asynchronous),
        ] {
            line(
                &mut out,
                &format!(
                    "| {name} ({}) | {} | {} | {} | {:.1} |",
                    appends.callers,
                    thousands(appends.records_per_second),
                    thousands(appends.latency.p50_us as f64),
                    thousands(appends.latency.p99_us as f64),
                    appends.cpu_us_per_record
                ),
            );
        }
        let _ = writeln!(
            out,
            "\nfdatasync alone: p50 {} µs, p99 {} µs. Verifying: {} records/s. On disk: {:.0} \
             bytes per record.",
            audit.fdatasync.p50_us,
            audit.fdatasync.p99_us,
            thousands(audit.verify.records_per_second),
            audit.bytes_per_record
        );
        out
    }

    fn decision(&self) -> String {
        let Some(decision) = &self.results.decision else { return String::new() };
        let mut out = format!(
            "## Decision\n\nThe decision alone, in memory, without network and HTTP: {} \
             registrations, {} offices, {} revocations; built in {:.1} s, {:.1} bytes per \
             registration.\n\n| persons | p50, ns | p99, ns | mean, ns |\n|---|---:|---:|---:|\n",
            thousands(decision.registrations as f64),
            thousands(decision.offices as f64),
            thousands(decision.revocations as f64),
            decision.build_seconds,
            decision.bytes_per_registration
        );
        for (name, took) in [
            ("the same few", decision.hot),
            ("by chance from all (cache misses)", decision.spread),
            ("not registered: denied", decision.denied),
        ] {
            let (p50, p99, mean) = (took.p50_ns, took.p99_ns, took.mean_ns);
            line(&mut out, &format!("| {name} | {p50:.0} | {p99:.0} | {mean:.0} |"));
        }
        out
    }

    fn issuing(&self) -> String {
        let Some(issuing) = &self.results.issuing else { return String::new() };
        format!(
            "## Issuing\n\n{} certificates from a whole box (registration authority, signer, \
             store, lint, audit) in {:.1} s: {:.0}/s, so {:.0} s for 250,000. Errors: {}.\n\n\
             {LATENCY_HEAD}\n{}",
            thousands(issuing.certificates as f64),
            issuing.seconds,
            issuing.per_second,
            issuing.seconds_for_250000,
            counts(&issuing.failures),
            latency_row("one certificate", issuing.latency)
        )
    }

    fn commands(&self) -> String {
        let mut out = String::from(
            "## Commands\n\nWhat was run; `make bench` does all of it. FIXTURE is the folder that \
             `sekisho-bench fixture` makes.\n\n```text\n",
        );
        for command in &self.results.commands {
            line(&mut out, command);
        }
        out.push_str("```\n");
        out
    }

    fn plot(&self, out: &mut String, name: &str, what: &str) {
        if let Some(drawn) = self.drawn.iter().find(|drawn| drawn.name == name) {
            line(out, &format!("![{what}]({}/{})\n", self.link, drawn.file));
        }
    }
}

fn series_table(all: &[Series]) -> String {
    let mut out = String::from(
        "| mode | key exchange | system | CPU µs (least–most) | per second | p50, µs | p99, µs | \
         resumed | failed |\n|---|---|---|---:|---:|---:|---:|---:|---:|\n",
    );
    let mut modes: Vec<(&str, &str)> = Vec::new();
    for series in all {
        let mode = (series.mode.as_str(), series.group.as_str());
        if !modes.contains(&mode) {
            modes.push(mode);
        }
    }
    for (mode, group) in modes {
        for system in SYSTEMS {
            let Some(series) = find(all, mode, group, system) else { continue };
            let Figures { cpu_us, per_second, p50_us, p99_us } = series.median;
            let shares = series.rounds.iter().map(|round| round.resumed_share);
            let resumed = shares.fold(1.0, f64::min) * 100.0;
            let failed: u64 = series.rounds.iter().map(|round| round.failures).sum();
            line(
                &mut out,
                &format!(
                    "| {mode} | {} | {system} | **{}** ({}–{}) | {}{} | {} | {} | \
                     {resumed:.0} % | {failed} |",
                    if group == "hybrid" { "X25519MLKEM768" } else { "X25519" },
                    told(cpu_us),
                    told(series.min.cpu_us),
                    told(series.max.cpu_us),
                    thousands(per_second),
                    if series.generator_bound() { " †" } else { "" },
                    thousands(p50_us),
                    thousands(p99_us)
                ),
            );
        }
    }
    out.push_str(
        "\n† The server was not busy all the time: the throughput is the generator's.\n\n",
    );
    out
}

fn limits(changed: &[String]) -> String {
    if changed.is_empty() {
        return "- The gateway's limits are the shipped ones.\n".to_owned();
    }
    let mut out = String::from("- Limits of the gateway that differ from the shipped ones:\n");
    for change in changed {
        line(&mut out, &format!("  - {}", escaped(change)));
    }
    out
}

fn latency_row(name: &str, latency: Option<Latency>) -> String {
    let Some(latency) = latency else { return format!("| {name} | – | – | – | – | – |") };
    let ms = |us: u64| format!("{:.2}", us as f64 / 1_000.0);
    format!(
        "| {name} | {} | {} | {} | {} | {} |",
        thousands(latency.count as f64),
        ms(latency.p50_us),
        ms(latency.p90_us),
        ms(latency.p99_us),
        ms(latency.max_us)
    )
}

fn counts(counts: &Counts) -> String {
    let told: Vec<String> = counts
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(what, count)| format!("{count} × {}", escaped(what)))
        .collect();
    if told.is_empty() { "none".to_owned() } else { told.join("; ") }
}

/// In a table, and not taken for Markdown.
fn escaped(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

fn met(goal: &Goal) -> &'static str {
    match goal.met {
        Some(true) => "yes",
        Some(false) => "**no**",
        None => "–",
    }
}

fn line(out: &mut String, text: &str) {
    out.push_str(text);
    out.push('\n');
}

fn span((least, most): (f64, f64)) -> String {
    format!("{least}–{most}")
}

/// Whether nginx : HAProxy is as it was in the trial.
fn relation(trial: &Trial, now: f64) -> String {
    let middle = |(least, most): (f64, f64)| f64::midpoint(least, most);
    let then = middle(trial.nginx) / middle(trial.haproxy);
    let change = (now / then - 1.0) * 100.0;
    let mode = trial.mode;
    if change.abs() > RELATION_PERCENT_MAX {
        format!(
            "- **{mode}: nginx : HAProxy is {now:.2}, it was {then:.2} in the trial: \
             {change:+.0} %, more than 25 %. Look at the peers' configuration before this mode's \
             ratios are used.**"
        )
    } else {
        format!(
            "- {mode}: nginx : HAProxy is {now:.2}, it was {then:.2} in the trial ({change:+.0} %)."
        )
    }
}

/// CPU µs per operation of the peers when the goals were set: least and most.
struct Trial {
    mode: &'static str,
    nginx: (f64, f64),
    haproxy: (f64, f64),
}

const TRIAL: [Trial; 3] = [
    Trial { mode: "keepalive", nginx: (20.6, 23.0), haproxy: (17.0, 18.5) },
    Trial { mode: "handshake", nginx: (1_107.0, 1_132.0), haproxy: (1_107.0, 1_132.0) },
    Trial { mode: "resumed", nginx: (602.0, 645.0), haproxy: (658.0, 753.0) },
];
const RELATION_PERCENT_MAX: f64 = 25.0;
const SYSTEMS: [&str; 6] =
    ["nginx", "haproxy", "gateway-transport", "gateway-policy", "gateway-async", "gateway-durable"];
const LATENCY_HEAD: &str =
    "| | count | p50, ms | p90, ms | p99, ms | most, ms |\n|---|---:|---:|---:|---:|---:|";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_relation_of_the_peers_is_told() {
        let trial = &TRIAL[1];
        assert!(!relation(trial, 1.2).contains("more than 25 %"));
        assert!(relation(trial, 1.3).contains("more than 25 %"));
        assert!(relation(trial, 0.7).contains("more than 25 %"));
    }

    #[test]
    fn what_others_wrote_does_not_break_the_table() {
        assert_eq!(escaped("a|b\nc"), "a\\|b c");
    }
}
