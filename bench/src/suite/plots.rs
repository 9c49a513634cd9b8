//! The plots of the page, as SVG: bars that lie, with their figure at the end and the least and
//! most of the rounds as a whisker, and the office day by the hour.
//!
//! Every panel has an axis of its own that begins at zero, because a handshake costs fifty times a
//! request.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::goals::{thousands, told};
use super::results::{Day, Results, Series, find, most};

/// A plot that was drawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Drawn {
    pub(crate) name: &'static str,
    pub(crate) file: String,
}

/// Draws everything that the results have figures for.
///
/// # Errors
/// If a file can not be written.
pub(crate) fn draw(results: &Results, dir: &Path) -> anyhow::Result<Vec<Drawn>> {
    let mut drawn = Vec::new();
    for (name, panels) in [
        ("cpu", cpu_panels(results)),
        ("layers", layer_panels(results)),
        ("throughput", throughput_panels(results)),
        ("latency", latency_panels(results)),
        ("memory", memory_panels(results)),
    ] {
        let panels: Vec<Panel> =
            panels.into_iter().filter(|panel| !panel.bars.is_empty()).collect();
        let svg = if panels.is_empty() { None } else { Some(bars(&panels)?) };
        drawn.extend(kept(dir, name, svg.as_deref())?);
    }
    let day = results.day.as_ref().filter(|day| !day.hours.is_empty());
    let svg = day.map(day_plot).transpose()?;
    drawn.extend(kept(dir, "day", svg.as_deref())?);
    Ok(drawn)
}

/// Writes a plot; takes away what an earlier run drew if there is none now.
fn kept(dir: &Path, name: &'static str, svg: Option<&str>) -> anyhow::Result<Option<Drawn>> {
    let file = format!("{name}.svg");
    let path = dir.join(&file);
    let Some(svg) = svg else {
        if path.exists() {
            fs::remove_file(&path)
                .with_context(|| format!("cannot remove `{}`", path.display()))?;
        }
        return Ok(None);
    };
    fs::write(&path, svg).with_context(|| format!("cannot write `{}`", path.display()))?;
    Ok(Some(Drawn { name, file }))
}

/// Bars over one axis.
struct Panel {
    title: String,
    unit: &'static str,
    bars: Vec<Bar>,
}

struct Bar {
    label: String,
    value: f64,
    /// The least and the most of the rounds.
    range: Option<(f64, f64)>,
    color: RGBColor,
    /// Stands behind the figure.
    mark: &'static str,
}

fn cpu_panels(results: &Results) -> Vec<Panel> {
    let modes = [
        ("keepalive", "Keep-alive request, HTTP/1.1, 32 connections", 1),
        ("keepalive", "Keep-alive request, HTTP/2, 8 connections × 8 streams", 2),
        ("handshake", "New terminal: full handshake, request, close", 1),
        ("returning", "Returning terminal: full handshake, request, close", 1),
        ("resumed", "Resumed connection, request, close", 1),
    ];
    let panel = |(mode, title, http): (&str, &str, u8)| {
        let all = if http == 2 { &results.http2 } else { &results.side_by_side };
        let mut bars: Vec<Bar> =
            SYSTEMS.iter().filter_map(|name| find(all, mode, "x25519", name)).map(cpu).collect();
        bars.extend(
            find(all, mode, "hybrid", "gateway-async")
                .map(|series| Bar { label: "gateway-async, ML-KEM".to_owned(), ..cpu(series) }),
        );
        Panel { title: title.to_owned(), unit: "µs of CPU time", bars }
    };
    modes.into_iter().map(panel).collect()
}

fn layer_panels(results: &Results) -> Vec<Panel> {
    let layers = ["gateway-transport", "gateway-policy", "gateway-async", "gateway-durable"];
    let panel = |(mode, title): (&str, &str)| Panel {
        title: title.to_owned(),
        unit: "µs of CPU time",
        bars: layers
            .iter()
            .filter_map(|name| results.series(mode, "x25519", name))
            .map(cpu)
            .collect(),
    };
    [("keepalive", "Keep-alive request by layer"), ("handshake", "New terminal by layer")]
        .into_iter()
        .map(panel)
        .collect()
}

fn cpu(series: &Series) -> Bar {
    bar_of(&series.system, series.median.cpu_us, Some((series.min.cpu_us, series.max.cpu_us)), "")
}

fn throughput_panels(results: &Results) -> Vec<Panel> {
    let panel = |(mode, title): (&str, &str)| Panel {
        title: title.to_owned(),
        unit: "per second on one core († = the server was not busy all the time)",
        bars: SYSTEMS
            .iter()
            .filter_map(|name| results.series(mode, "x25519", name))
            .map(|series| {
                let range = (series.min.per_second, series.max.per_second);
                let mark = if series.generator_bound() { " †" } else { "" };
                bar_of(&series.system, series.median.per_second, Some(range), mark)
            })
            .collect(),
    };
    [
        ("keepalive", "Keep-alive requests, HTTP/1.1"),
        ("handshake", "New terminals: full handshakes"),
        ("resumed", "Resumed connections"),
    ]
    .into_iter()
    .map(panel)
    .collect()
}

fn latency_panels(results: &Results) -> Vec<Panel> {
    let p50 =
        results.open_loop.iter().map(|open| bar_of(&open.system, open.added.p50_us, None, ""));
    let p99 =
        results.open_loop.iter().map(|open| bar_of(&open.system, open.added.p99_us, None, ""));
    let (p50, p99) = (p50.collect(), p99.collect());
    vec![
        Panel { title: "Added latency at half load, p50".to_owned(), unit: "µs", bars: p50 },
        Panel { title: "Added latency at half load, p99".to_owned(), unit: "µs", bars: p99 },
    ]
}

fn memory_panels(results: &Results) -> Vec<Panel> {
    let bars = results
        .idle
        .iter()
        .filter_map(|idle| {
            let kilobytes = idle.answer.bytes_per_connection? / 1_000.0;
            Some(bar_of(&idle.system, kilobytes, None, ""))
        })
        .collect();
    let title = "Memory per idle mTLS connection".to_owned();
    vec![Panel { title, unit: "KB of resident memory", bars }]
}

fn bar_of(system: &str, value: f64, range: Option<(f64, f64)>, mark: &'static str) -> Bar {
    let color = COLORS
        .iter()
        .find(|(name, _)| *name == system)
        .map_or(RGBColor(0x77, 0x77, 0x77), |(_, color)| *color);
    Bar { label: system.to_owned(), value, range, color, mark }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// All panels, one below the other.
fn bars(panels: &[Panel]) -> anyhow::Result<String> {
    let height: i32 = panels.iter().map(panel_height).sum::<i32>() + MARGIN;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH as u32, height as u32));
        let area = area.into_drawing_area();
        area.fill(&WHITE)?;
        let mut top = 0;
        for panel in panels {
            bar_panel(&area, panel, top)?;
            top += panel_height(panel);
        }
        area.present()?;
    }
    Ok(svg)
}

fn panel_height(panel: &Panel) -> i32 {
    TITLE + panel.bars.len() as i32 * ROW + AXIS
}

fn bar_panel(area: &Area<'_>, panel: &Panel, top: i32) -> anyhow::Result<()> {
    let tops: Vec<f64> =
        panel.bars.iter().map(|bar| bar.range.map_or(bar.value, |(_, most)| most)).collect();
    let (step, end) = ticks(most(&tops).unwrap_or(1.0));
    let x = |value: f64| LEFT + (value.max(0.0) / end * f64::from(RIGHT - LEFT)).round() as i32;
    let first = top + TITLE;
    let bottom = first + panel.bars.len() as i32 * ROW;
    text(area, &panel.title, (MARGIN, top + TITLE / 2 + 2), HPos::Left, (15, DARK))?;
    let mut tick = 0.0;
    while tick <= end * 1.001 {
        area.draw(&PathElement::new(vec![(x(tick), first), (x(tick), bottom)], LINE))?;
        text(area, &figure(tick, step), (x(tick), bottom + 11), HPos::Center, (11, GREY))?;
        tick += step;
    }
    text(area, panel.unit, (RIGHT, bottom + 27), HPos::Right, (11, GREY))?;
    for (at, bar) in panel.bars.iter().enumerate() {
        let (upper, lower) = (first + at as i32 * ROW + 4, first + (at as i32 + 1) * ROW - 4);
        let middle = i32::midpoint(upper, lower);
        text(area, &bar.label, (LEFT - 8, middle), HPos::Right, (13, DARK))?;
        area.draw(&Rectangle::new([(LEFT, upper), (x(bar.value), lower)], bar.color.filled()))?;
        let mut told_from = x(bar.value);
        if let Some((least, most)) = bar.range {
            whisker(area, x(least), x(most), middle)?;
            told_from = told_from.max(x(most));
        }
        let told = format!("{}{}", told(bar.value), bar.mark);
        text(area, &told, (told_from + 7, middle), HPos::Left, (13, DARK))?;
    }
    area.draw(&PathElement::new(vec![(LEFT, first), (LEFT, bottom)], DARK))?;
    Ok(())
}

fn whisker(area: &Area<'_>, from: i32, to: i32, middle: i32) -> anyhow::Result<()> {
    area.draw(&PathElement::new(vec![(from, middle), (to, middle)], DARK))?;
    for x in [from, to] {
        area.draw(&PathElement::new(vec![(x, middle - 4), (x, middle + 4)], DARK))?;
    }
    Ok(())
}

/// Requests by the hour above, latency by the hour below.
fn day_plot(day: &Day) -> anyhow::Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH as u32, DAY_HEIGHT as u32));
        let area = area.into_drawing_area();
        area.fill(&WHITE)?;
        let rates: Vec<f64> = day
            .hours
            .iter()
            .map(|hour| hour.answered as f64 * 1_000.0 / day.hour_ms as f64)
            .collect();
        let offered: Vec<f64> = day.hours.iter().map(|hour| hour.rate).collect();
        let upper = Frame::new(
            day,
            "Requests per second: answered (bars), asked for (line)",
            0,
            &[&rates, &offered],
        );
        upper.axes(&area)?;
        for (at, rate) in rates.iter().enumerate() {
            let (x, width) = (upper.x(at), upper.width() * 3 / 10);
            let corner = (x - width, upper.y(*rate));
            let color = RGBColor(0x22, 0x88, 0x33);
            area.draw(&Rectangle::new([corner, (x + width, upper.bottom)], color.filled()))?;
        }
        upper.line(&area, &offered, DARK)?;
        let of = |us: fn(&super::answers::Latency) -> u64| -> Vec<f64> {
            let hours = day.hours.iter();
            hours.map(|hour| hour.latency.as_ref().map_or(0, us) as f64 / 1_000.0).collect()
        };
        let (p50, p99) = (of(|latency| latency.p50_us), of(|latency| latency.p99_us));
        let title = "Latency, ms: p99 (red, above) and p50 (blue, below)";
        let lower = Frame::new(day, title, DAY_HEIGHT / 2, &[&p50, &p99]);
        lower.axes(&area)?;
        lower.line(&area, &p99, RGBColor(0xCC, 0x33, 0x44))?;
        lower.line(&area, &p50, RGBColor(0x44, 0x77, 0xAA))?;
        area.present()?;
    }
    Ok(svg)
}

/// A plot by the hour.
struct Frame<'a> {
    title: &'a str,
    hours: Vec<u32>,
    top: i32,
    bottom: i32,
    step: f64,
    end: f64,
}

impl<'a> Frame<'a> {
    fn new(day: &Day, title: &'a str, top: i32, values: &[&[f64]]) -> Self {
        let highest = values.iter().filter_map(|values| most(values)).fold(0.0, f64::max);
        let (step, end) = ticks(highest);
        let hours = day.hours.iter().map(|hour| hour.hour).collect();
        let (top, bottom) = (top + TITLE, top + DAY_HEIGHT / 2 - AXIS);
        Self { title, hours, top, bottom, step, end }
    }

    fn width(&self) -> i32 {
        (WIDTH - MARGIN - DAY_LEFT) / i32::try_from(self.hours.len().max(1)).unwrap_or(1)
    }

    fn x(&self, at: usize) -> i32 {
        DAY_LEFT + self.width() * at as i32 + self.width() / 2
    }

    fn y(&self, value: f64) -> i32 {
        self.bottom - (value / self.end * f64::from(self.bottom - self.top)).round() as i32
    }

    fn axes(&self, area: &Area<'_>) -> anyhow::Result<()> {
        text(area, self.title, (MARGIN, self.top - TITLE / 2), HPos::Left, (15, DARK))?;
        let right = DAY_LEFT + self.width() * self.hours.len() as i32;
        let mut tick = 0.0;
        while tick <= self.end * 1.001 {
            let y = self.y(tick);
            area.draw(&PathElement::new(vec![(DAY_LEFT, y), (right, y)], LINE))?;
            text(area, &figure(tick, self.step), (DAY_LEFT - 6, y), HPos::Right, (11, GREY))?;
            tick += self.step;
        }
        for (at, hour) in self.hours.iter().enumerate() {
            let place = (self.x(at), self.bottom + 11);
            text(area, &hour.to_string(), place, HPos::Center, (11, GREY))?;
        }
        text(area, "hour of the day", (right, self.bottom + 27), HPos::Right, (11, GREY))
    }

    fn line(&self, area: &Area<'_>, values: &[f64], color: RGBColor) -> anyhow::Result<()> {
        let points: Vec<(i32, i32)> =
            values.iter().enumerate().map(|(at, value)| (self.x(at), self.y(*value))).collect();
        area.draw(&PathElement::new(points, color.stroke_width(2)))?;
        Ok(())
    }
}

fn text(
    area: &Area<'_>,
    text: &str,
    place: (i32, i32),
    side: HPos,
    (size, color): (u32, RGBColor),
) -> anyhow::Result<()> {
    let style = TextStyle::from(("sans-serif", size).into_font()).color(&color);
    let style = style.pos(Pos::new(side, VPos::Center));
    area.draw(&Text::new(text.to_owned(), place, style))?;
    Ok(())
}

/// The distance of the axis' marks and its end: about five marks, at 1, 2 or 5 times a power of
/// ten, and room for the last one.
fn ticks(highest: f64) -> (f64, f64) {
    let highest = if highest > 0.0 { highest } else { 1.0 };
    let power = 10f64.powf((highest / 5.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|times| times * power)
        .find(|step| highest / step <= 5.5)
        .unwrap_or(10.0 * power);
    (step, (highest / step).ceil() * step)
}

/// A mark of an axis.
fn figure(value: f64, step: f64) -> String {
    if step >= 1.0 { thousands(value) } else { format!("{value:.2}") }
}

const SYSTEMS: [&str; 6] =
    ["nginx", "haproxy", "gateway-transport", "gateway-policy", "gateway-async", "gateway-durable"];
const COLORS: [(&str, RGBColor); 6] = [
    ("nginx", RGBColor(0x44, 0x77, 0xAA)),
    ("haproxy", RGBColor(0x66, 0xAA, 0xCC)),
    ("gateway-transport", RGBColor(0xB8, 0xD8, 0xA8)),
    ("gateway-policy", RGBColor(0x77, 0xB8, 0x77)),
    ("gateway-async", RGBColor(0x22, 0x88, 0x33)),
    ("gateway-durable", RGBColor(0xAA, 0x55, 0x22)),
];
const DARK: RGBColor = RGBColor(0x22, 0x22, 0x22);
const GREY: RGBColor = RGBColor(0x66, 0x66, 0x66);
const LINE: RGBColor = RGBColor(0xDD, 0xDD, 0xDD);
const WIDTH: i32 = 860;
const MARGIN: i32 = 14;
const LEFT: i32 = 190;
const RIGHT: i32 = 760;
const TITLE: i32 = 36;
const ROW: i32 = 25;
const AXIS: i32 = 42;
const DAY_LEFT: i32 = 62;
const DAY_HEIGHT: i32 = 560;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_a_few_round_marks_and_hold_the_highest() {
        for highest in [0.3, 1.0, 17.4, 26.0, 99.0, 1_132.0, 53_500.0] {
            let (step, end) = ticks(highest);
            let marks = end / step;
            assert!(end >= highest && (1.0..=6.01).contains(&marks), "{highest}: {step} {end}");
        }
    }

    #[test]
    fn bars_tell_their_labels_figures_and_unit() {
        let bar = bar_of("nginx", 21.5, Some((20.0, 23.0)), " †");
        let title = "A title".to_owned();
        let svg = bars(&[Panel { title, unit: "µs", bars: vec![bar] }]).unwrap();
        for part in ["<svg", "A title", "nginx", "21.5 †", "µs", "#4477AA"] {
            assert!(svg.contains(part), "{part} in {svg}");
        }
    }
}
