//! `report.html`: one self-contained page without scripts that reads in light and in dark.

use std::fmt::{Display, Write};

use plotters::prelude::*;

use super::files::png;
use super::measure::Scores;
use super::world::{IMAGE_SIZE, Pixels};
use crate::error::{Error, Result};

/// What the page tells.
pub struct Report {
    /// The run's seed.
    pub seed: u64,
    /// Wall time of each stage, in order.
    pub stages: Vec<(String, f64)>,
    /// Before and after alignment, then the controls: one column each.
    pub columns: Vec<(String, Scores)>,
    /// One plot each.
    pub plots: Vec<Plot>,
    /// Held-out pictures with answers.
    pub samples: Vec<Sample>,
    /// The exact settings: a heading and a text each.
    pub settings: Vec<(String, String)>,
}

/// Values over steps.
pub struct Plot {
    /// What is shown.
    pub title: String,
    /// Name and (step, value) of each line.
    pub lines: Vec<(String, Vec<(f64, f64)>)>,
}

/// A held-out picture, a question, and what the model said.
pub struct Sample {
    /// The picture.
    pub pixels: Pixels,
    /// The question.
    pub question: String,
    /// The true answer.
    pub truth: String,
    /// Greedy answers: who says it, the text, and the judge's count of wrong facts.
    pub answers: Vec<(String, String, Option<usize>)>,
}

/// Lines of a plot, readable on white and on black.
const LINE_COLOURS: [RGBColor; 3] =
    [RGBColor(214, 96, 38), RGBColor(52, 132, 196), RGBColor(96, 160, 72)];
/// Width and height of a plot in pixels.
const PLOT_SIZE: (u32, u32) = (420, 240);
/// A plot shows at most this many points of a line; each is the mean of a stretch of steps.
const POINTS: usize = 80;

const STYLE: &str = "
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2rem }
table { border-collapse: collapse }
th, td { padding: .25rem .9rem .25rem 0; text-align: left; border-bottom: 1px solid #8886 }
td { font-variant-numeric: tabular-nums }
figure { display: inline-block; margin: 0 1rem 1rem 0; vertical-align: top }
svg text { fill: currentColor } svg [stroke='#000000'] { stroke: currentColor }
.samples > div { display: flex; gap: 1rem; margin-bottom: 1rem }
.samples img { width: 112px; height: 112px; image-rendering: pixelated; flex: none }
.samples p { margin: 0 } .right { color: #3a8f3a } .wrong { color: #c8503c }
pre { overflow-x: auto; background: #8882; padding: .6rem } .small { font-size: .9rem }";

impl Report {
    /// The page.
    pub fn html(&self) -> Result<String> {
        let mut page = Page::default();
        page.add("<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n");
        page.add("<meta name=\"viewport\" content=\"width=device-width\">\n");
        page.add(format_args!("<title>silkie demo, seed {}</title>", self.seed));
        page.add(format_args!("\n<style>{STYLE}\n</style>\n"));
        page.add(format_args!("<h1>silkie demo, seed {}</h1>\n", self.seed));
        page.add(
            "<p>A small Qwen-VL learned to see and to speak from captions and from answers that \
             were true or false at random; then preference distillation taught it to prefer the \
             true ones. Everything below was measured on pictures whose arrangement of colours \
             was never seen in training.</p>\n",
        );
        self.table(&mut page);
        page.add("<h2>Curves</h2>\n");
        for plot in &self.plots {
            page.add(format_args!("<figure>{}</figure>\n", plot.svg()?));
        }
        page.add("<h2>What it says</h2>\n<div class=\"samples\">\n");
        for sample in &self.samples {
            sample.add_to(&mut page)?;
        }
        page.add("</div>\n<h2>Time</h2>\n<table>\n");
        for (stage, seconds) in &self.stages {
            let stage = escape(stage);
            page.add(format_args!("<tr><td>{stage}</td><td>{seconds:.1} s</td></tr>\n"));
        }
        page.add("</table>\n<h2>Settings</h2>\n");
        for (heading, text) in &self.settings {
            let (heading, text) = (escape(heading), escape(text));
            page.add(format_args!(
                "<details><summary>{heading}</summary><pre>{text}</pre></details>\n"
            ));
        }
        page.add("</html>\n");
        Ok(page.0)
    }

    fn table(&self, page: &mut Page) {
        page.add("<h2>Before and after</h2>\n<table>\n<tr><th>held-out</th>");
        for (name, _) in &self.columns {
            page.add(format_args!("<th>{}</th>", escape(name)));
        }
        page.add("</tr>\n");
        for row in Scores::ROWS {
            page.add(format_args!("<tr><td>{}</td>", row.name));
            for (_, scores) in &self.columns {
                page.add(format_args!("<td>{}</td>", row.text(scores)));
            }
            page.add("</tr>\n");
        }
        page.add("</table>\n<p class=\"small\">");
        for row in Scores::ROWS {
            page.add(format_args!("<b>{}</b>: {}. ", row.name, row.meaning));
        }
        page.add("</p>\n");
    }
}

impl Plot {
    /// As SVG. Black becomes the page's text colour by the page's style.
    fn svg(&self) -> Result<String> {
        let mut svg = String::new();
        self.draw(&mut svg)
            .map_err(|e| Error::Run(format!("demo: cannot draw the plot `{}`: {e}", self.title)))?;
        Ok(svg)
    }

    fn draw(&self, svg: &mut String) -> std::result::Result<(), Box<dyn std::error::Error + '_>> {
        let lines: Vec<Vec<(f64, f64)>> = self.lines.iter().map(|line| smooth(&line.1)).collect();
        let finite = || lines.iter().flatten().filter(|point| point.1.is_finite());
        let (mut low, mut high) =
            finite().fold((f64::MAX, f64::MIN), |(low, high), p| (low.min(p.1), high.max(p.1)));
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        let slack = ((high - low) * 0.05).max(1e-3);
        let last = finite().fold(1.0f64, |last, point| last.max(point.0));

        let area = SVGBackend::with_string(svg, PLOT_SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .caption(self.title.as_str(), ("sans-serif", 20))
            .margin(6)
            .x_label_area_size(24)
            .y_label_area_size(44)
            .build_cartesian_2d(0.0..last, low - slack..high + slack)?;
        chart
            .configure_mesh()
            .x_labels(5)
            .x_label_formatter(&|step| format!("{step:.0}"))
            .y_labels(5)
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(RGBColor(136, 136, 136).mix(0.35))
            .label_style(("sans-serif", 15))
            .draw()?;
        for (i, (name, _)) in self.lines.iter().enumerate() {
            let colour = LINE_COLOURS[i % LINE_COLOURS.len()];
            let points = lines[i].iter().copied().filter(|point| point.1.is_finite());
            let series = chart.draw_series(LineSeries::new(points, colour.stroke_width(2)))?;
            if self.lines.len() > 1 {
                series
                    .label(name.as_str())
                    .legend(move |(x, y)| PathElement::new([(x, y), (x + 14, y)], colour));
            }
        }
        if self.lines.len() > 1 {
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::MiddleRight)
                .label_font(("sans-serif", 15))
                .draw()?;
        }
        area.present()?;
        Ok(())
    }
}

/// Means over stretches of steps, at most [`POINTS`] of them.
fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let stretch = points.len().div_ceil(POINTS).max(1);
    let mean = |values: &[(f64, f64)]| {
        let sum = values.iter().fold((0.0, 0.0), |sum, v| (sum.0 + v.0, sum.1 + v.1));
        (sum.0 / values.len() as f64, sum.1 / values.len() as f64)
    };
    points.chunks(stretch).map(mean).collect()
}

impl Sample {
    fn add_to(&self, page: &mut Page) -> Result<()> {
        let picture = base64(&png(&self.pixels)?);
        page.add(format_args!(
            "<div><img alt=\"held-out picture\" width=\"{IMAGE_SIZE}\" height=\"{IMAGE_SIZE}\" \
             src=\"data:image/png;base64,{picture}\"><div>\n<p><b>{}</b></p>\n<p>truth: {}</p>\n",
            escape(&self.question),
            escape(&self.truth)
        ));
        for (who, text, wrong) in &self.answers {
            let (class, verdict) = match wrong {
                Some(0) => ("right", "faithful".to_string()),
                Some(1) => ("wrong", "1 wrong fact".to_string()),
                Some(n) => ("wrong", format!("{n} wrong facts")),
                None => ("wrong", "does not answer".to_string()),
            };
            let (who, text) = (escape(who), escape(text));
            page.add(format_args!(
                "<p>{who}: {text} <span class=\"{class}\">({verdict})</span></p>\n"
            ));
        }
        page.add("</div></div>\n");
        Ok(())
    }
}

/// The text of the page so far.
#[derive(Default)]
struct Page(String);

impl Page {
    fn add(&mut self, text: impl Display) {
        let _ = write!(self.0, "{text}"); // writing to a String cannot fail
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = (0..3).fold(0u32, |bits, i| bits << 8 | *group.get(i).unwrap_or(&0) as u32);
        for i in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * i)) as usize & 63] as char;
            text.push(if i <= group.len() { digit } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_in_rfc_4648() {
        let cases = ["", "f", "fo", "foo", "foob", "fooba", "foobar"];
        let expected = ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"];
        assert_eq!(cases.map(|text| base64(text.as_bytes())), expected);
    }

    #[test]
    fn smoothing_keeps_short_lines_and_means_long_ones() {
        let line: Vec<(f64, f64)> = (0..160).map(|i| (i as f64, 2.0 * i as f64)).collect();
        assert_eq!(smooth(&line[..80]), &line[..80]);
        assert_eq!(smooth(&line)[..2], [(0.5, 1.0), (2.5, 5.0)]);
        assert_eq!(smooth(&[]), []);
    }
}
