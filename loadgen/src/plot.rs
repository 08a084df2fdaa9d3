//! Reports as one page that needs nothing else: plots are SVG in its text.
//!
//! Drawn by hand: a plot is two axes and some lines, and a plotting crate measures text by fonts
//! that the reader of the page may not have.

use std::fmt::Write as _;

use crate::compare::{Comparison, Outcome};
use crate::ensemble::report::{EnsembleReport, Versus};
use crate::fill::FillReport;
use crate::idle::IdleReport;
use crate::limits::LimitsReport;
use crate::report::{Report, Summary};
use crate::scene::SceneReport;
use crate::start_time::StartTimeReport;
use crate::verify::Verdict;

/// What has something to draw.
pub trait Plots {
    fn plots(&self) -> Vec<Plot>;
}

/// Lines over two axes.
#[derive(Clone, Debug)]
pub struct Plot {
    title: &'static str,
    x: Axis,
    y: Axis,
    lines: Vec<Line>,
}

#[derive(Clone, Debug)]
struct Line {
    name: String,
    /// Lines of one colour belong together, and are named once.
    colour: usize,
    points: Vec<(f64, f64)>,
}

/// How values become places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scale {
    /// From zero.
    Linear,
    Log,
    /// By the number of nines: 0.9, 0.99 and 0.999 are equally far apart.
    Percentile,
}

#[derive(Clone, Debug)]
struct Axis {
    label: &'static str,
    scale: Scale,
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 52.0;
const COLOURS: [&str; 8] =
    ["#1f6fb4", "#d9561e", "#2f8f4e", "#8a4fb0", "#b8860b", "#c2306f", "#4c6a76", "#6b5b3a"];

impl Scale {
    /// A value's place, in units of its own.
    fn place(self, value: f64) -> f64 {
        match self {
            Scale::Linear => value,
            Scale::Log => value.max(f64::MIN_POSITIVE).log10(),
            Scale::Percentile => -(1.0 - value).max(1e-9).log10(),
        }
    }

    /// From where to where values of these places are drawn.
    fn range(self, least: f64, most: f64) -> (f64, f64) {
        match self {
            Scale::Linear => (0.0, if 0.0 < most { most * 1.05 } else { 1.0 }),
            Scale::Log => (least.floor(), most.ceil().max(least.floor() + 1.0)),
            Scale::Percentile => (0.0, most.max(1.0)),
        }
    }

    /// The places that have a line and a text.
    fn ticks(self, (least, most): (f64, f64)) -> Vec<(f64, String)> {
        match self {
            Scale::Linear => {
                let step = nice_step(most / 5.0);
                let count = (most / step).floor() as u32;
                (0..=count).map(|tick| f64::from(tick) * step).map(|at| (at, short(at))).collect()
            }
            Scale::Log => (least as i32..=most as i32)
                .map(|power| (f64::from(power), short(10f64.powi(power))))
                .collect(),
            Scale::Percentile => [0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999_999]
                .into_iter()
                .map(|quantile| (self.place(quantile), format!("{}%", percent(quantile))))
                .filter(|&(at, _)| at <= most)
                .collect(),
        }
    }
}

fn percent(quantile: f64) -> String {
    let text = format!("{:.4}", quantile * 100.0);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// 1, 2 or 5 times a power of ten, at least as large.
fn nice_step(least: f64) -> f64 {
    let power = 10f64.powf(least.max(1e-9).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().find(|step| least <= step * power);
    step.unwrap_or(10.0) * power
}

/// A number as a person would write it beside an axis.
fn short(number: f64) -> String {
    match number.abs() {
        large if 1e6 <= large => format!("{} M", trimmed(number / 1e6)),
        large if 1e3 <= large => format!("{} k", trimmed(number / 1e3)),
        _ => trimmed(number),
    }
}

fn trimmed(number: f64) -> String {
    let text = format!("{number:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

impl Plot {
    fn svg(&self, out: &mut String) {
        let places = |pick: fn(&(f64, f64)) -> f64, scale: Scale| {
            let points = self.lines.iter().flat_map(|line| &line.points);
            let (least, most) = points
                .map(|point| scale.place(pick(point)))
                .fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), place| {
                    (least.min(place), most.max(place))
                });
            scale.range(least, most)
        };
        let (xs, ys) =
            (places(|point| point.0, self.x.scale), places(|point| point.1, self.y.scale));
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        let x_of = |place: f64| LEFT + (place - xs.0) / (xs.1 - xs.0) * (right - LEFT);
        let y_of = |place: f64| bottom - (place - ys.0) / (ys.1 - ys.0) * (bottom - TOP);
        // Writing into a text does not fail.
        let _ = self.axes(out, (xs, ys), &x_of, &y_of);
        let mut named = Vec::new();
        for line in &self.lines {
            let colour = COLOURS[line.colour % COLOURS.len()];
            let points: Vec<_> = line
                .points
                .iter()
                .map(|&(x, y)| (x_of(self.x.scale.place(x)), y_of(self.y.scale.place(y))))
                .map(|(x, y)| format!("{x:.1},{y:.1}"))
                .collect();
            let _ = writeln!(
                out,
                "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\" points=\"{}\"/>",
                points.join(" ")
            );
            if !named.contains(&line.colour) {
                named.push(line.colour);
                let (x, y) = (right + 14.0, TOP + 6.0 + 18.0 * named.len() as f64);
                let name = escaped(&line.name);
                let _ = writeln!(
                    out,
                    "<text x=\"{x:.1}\" y=\"{y:.1}\" fill=\"{colour}\">{name}</text>"
                );
            }
        }
        out.push_str("</svg>\n");
    }

    fn axes(
        &self,
        out: &mut String,
        (xs, ys): ((f64, f64), (f64, f64)),
        x_of: &dyn Fn(f64) -> f64,
        y_of: &dyn Fn(f64) -> f64,
    ) -> std::fmt::Result {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        writeln!(
            out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"12\">"
        )?;
        writeln!(out, "<text x=\"{LEFT}\" y=\"20\" font-size=\"15\">{}</text>", self.title)?;
        for (place, text) in self.x.scale.ticks(xs) {
            let (x, y) = (x_of(place), bottom + 18.0);
            writeln!(
                out,
                "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\" stroke=\"#ddd\"/>\
                 <text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{text}</text>"
            )?;
        }
        for (place, text) in self.y.scale.ticks(ys) {
            let (x, y) = (LEFT - 8.0, y_of(place));
            writeln!(
                out,
                "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\
                 <text x=\"{x}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
                y + 4.0
            )?;
        }
        let (middle, low) = (f64::midpoint(LEFT, right), HEIGHT - 12.0);
        let (side, half) = (18.0, f64::midpoint(TOP, bottom));
        writeln!(
            out,
            "<text x=\"{middle}\" y=\"{low}\" text-anchor=\"middle\">{}</text>\
             <text transform=\"translate({side},{half}) rotate(-90)\" \
             text-anchor=\"middle\">{}</text>",
            self.x.label, self.y.label
        )
    }
}

/// Reports of several runs in one pair of plots; those of one name have one colour.
fn plots_of<'a>(runs: impl Iterator<Item = (String, &'a Summary)> + Clone) -> Vec<Plot> {
    let mut colours: Vec<String> = Vec::new();
    let mut colour = |name: &str| {
        colours.iter().position(|known| known == name).unwrap_or_else(|| {
            colours.push(name.to_owned());
            colours.len() - 1
        })
    };
    let (mut latencies, mut rates) = (Vec::new(), Vec::new());
    for (run, summary) in runs {
        for op in &summary.ops {
            let name = format!("{run}{}{}", if run.is_empty() { "" } else { " " }, op.op.name());
            let points = op.percentiles.clone();
            if 0 < op.count {
                latencies.push(Line { colour: colour(&name), name, points });
            }
        }
        // The last second may be cut short, and would show as a fall.
        let whole = &summary.per_second[..summary.per_second.len().min(summary.seconds as usize)];
        let points: Vec<_> = whole
            .iter()
            .enumerate()
            .map(|(second, &count)| (second as f64 + 0.5, count as f64))
            .collect();
        if 1 < points.len() {
            let name = if run.is_empty() { "all".to_owned() } else { run };
            rates.push(Line { colour: colour(&name), name, points });
        }
    }
    let latency = Plot {
        title: "Latency by percentile",
        x: Axis { label: "percentile", scale: Scale::Percentile },
        y: Axis { label: "latency in µs", scale: Scale::Log },
        lines: latencies,
    };
    let rate = Plot {
        title: "Throughput over time",
        x: Axis { label: "seconds since the begin", scale: Scale::Linear },
        y: Axis { label: "replies per s", scale: Scale::Linear },
        lines: rates,
    };
    [latency, rate].into_iter().filter(|plot| !plot.lines.is_empty()).collect()
}

fn plots_of_one(summary: &Summary) -> Vec<Plot> {
    plots_of(std::iter::once((String::new(), summary)))
}

impl Plots for Report {
    fn plots(&self) -> Vec<Plot> {
        plots_of_one(&self.summary)
    }
}

impl Plots for Verdict {
    fn plots(&self) -> Vec<Plot> {
        plots_of_one(&self.summary)
    }
}

impl Plots for EnsembleReport {
    fn plots(&self) -> Vec<Plot> {
        plots_of_one(self.summary())
    }
}

impl Plots for Versus {
    fn plots(&self) -> Vec<Plot> {
        Vec::new()
    }
}

impl Plots for FillReport {
    fn plots(&self) -> Vec<Plot> {
        plots_of_one(&self.summary)
    }
}

impl Plots for IdleReport {
    fn plots(&self) -> Vec<Plot> {
        Vec::new()
    }
}

impl Plots for SceneReport {
    fn plots(&self) -> Vec<Plot> {
        plots_of_one(&self.summary)
    }
}

impl Plots for StartTimeReport {
    fn plots(&self) -> Vec<Plot> {
        Vec::new()
    }
}

impl Plots for Comparison {
    fn plots(&self) -> Vec<Plot> {
        fn run(outcome: &Outcome) -> Option<(String, &Summary)> {
            Some((outcome.side.clone(), outcome.summary.as_ref()?))
        }
        plots_of(self.reports.iter().filter_map(run))
    }
}

impl Plots for LimitsReport {
    fn plots(&self) -> Vec<Plot> {
        let mut plots = plots_of(std::iter::once(("echo".to_owned(), &self.echo.summary)));
        let line = |name: &str, colour, pick: fn(&crate::limits::SyncLimit) -> f64| Line {
            name: name.to_owned(),
            colour,
            points: self.syncs.iter().map(|sync| (sync.batch_bytes as f64, pick(sync))).collect(),
        };
        if !self.syncs.is_empty() {
            plots.push(Plot {
                title: "Write and sync",
                x: Axis { label: "bytes in a batch", scale: Scale::Log },
                y: Axis { label: "µs", scale: Scale::Log },
                lines: vec![line("p50", 0, |sync| sync.p50_us), line("p99", 1, |sync| sync.p99_us)],
            });
        }
        plots
    }
}

/// A page with the text of a report and its plots.
#[must_use]
pub fn page(text: &str, plots: &[Plot]) -> String {
    let title = escaped(text.lines().next().unwrap_or("loadgen"));
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <title>{title}</title>\n<style>\n\
         body {{ font-family: sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em }}\n\
         pre {{ overflow-x: auto; background: #f5f5f5; padding: 1em }}\n\
         svg {{ display: block; max-width: 60em; margin: 1em 0 }}\n\
         </style>\n</head>\n<body>\n<h1>loadgen</h1>\n"
    );
    for plot in plots {
        plot.svg(&mut page);
    }
    let _ = write!(page, "<pre>{}</pre>\n</body>\n</html>\n", escaped(text));
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_holds_its_plots_and_nothing_from_elsewhere() {
        let line =
            Line { name: "a<b".to_owned(), colour: 0, points: vec![(0.5, 10.0), (0.99, 500.0)] };
        let plot = Plot {
            title: "Latency by percentile",
            x: Axis { label: "percentile", scale: Scale::Percentile },
            y: Axis { label: "latency in µs", scale: Scale::Log },
            lines: vec![line],
        };
        let page = page("loadgen run --mix get=1\n1 < 2 & 3", &[plot]);
        assert!(page.contains("1 &lt; 2 &amp; 3") && page.contains("a&lt;b"), "{page}");
        assert!(page.contains(">99%</text>") && page.contains(">1 k</text>"), "{page}");
        // 99 % is the end of the one axis, and 1 k that of the other.
        assert!(page.contains("points=\"159.8,308.0 610.0,75.2\""), "{page}");
        let links = page.matches("http").count() - page.matches("www.w3.org/2000/svg").count();
        assert_eq!((links, page.matches("NaN").count()), (0, 0));
    }

    #[test]
    fn ticks_are_numbers_a_person_would_choose() {
        let texts = |scale: Scale, range| -> Vec<String> {
            scale.ticks(range).into_iter().map(|(_, text)| text).collect()
        };
        assert_eq!(texts(Scale::Linear, (0.0, 260_000.0)), ["0", "100 k", "200 k"]);
        assert_eq!(texts(Scale::Log, (1.0, 3.0)), ["10", "100", "1 k"]);
        assert_eq!(texts(Scale::Percentile, (0.0, 3.0)), ["50%", "90%", "99%", "99.9%"]);
        assert_eq!(Scale::Linear.range(0.0, 0.0), (0.0, 1.0));
    }
}
