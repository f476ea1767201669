//! Figures as pictures: horizontal bars, one group for each operation, one bar for each engine.

use accountd::telemetry::precise;
use serde_json::Value;

const WIDTH: f64 = 860.0;
const LEFT: f64 = 150.0;
const BAR: f64 = 14.0;
const COLOURS: [&str; 2] = ["#3b6ea5", "#d08a2e"];

/// Calls per second and core.
pub fn per_core(engines: &[Value]) -> String {
    let value = |row: &Value| row["per_core_per_s"].as_f64().unwrap_or_default();
    chart(
        engines,
        "Calls per second and core of the server",
        1,
        value,
        |value| format!("{value:.0}"),
    )
}

/// The 99th percentile at 70 % of the capacity.
pub fn latency(engines: &[Value]) -> String {
    let value = |row: &Value| row["outcomes"]["OK"]["p99"].as_f64().unwrap_or_default();
    let title = "p99 at 70 % of the capacity, in milliseconds";
    chart(engines, title, 0, value, |value| format!("{value:.1}"))
}

/// `skip`: rows that would dwarf the others, or be dwarfed by them.
fn chart(
    engines: &[Value],
    title: &str,
    skip: usize,
    value: impl Fn(&Value) -> f64,
    label: impl Fn(f64) -> String,
) -> String {
    let rows = |engine: &Value| -> Vec<Value> {
        engine["rows"]
            .as_array()
            .map_or_else(Vec::new, |rows| rows[skip.min(rows.len())..].to_vec())
    };
    let all: Vec<Vec<Value>> = engines.iter().map(rows).collect();
    let most = all.iter().flatten().map(&value).fold(1.0, f64::max);
    let scale = (WIDTH - LEFT - 90.0) / most;
    let (mut shapes, mut y) = (Vec::new(), 56.0);
    let mut text = |x: f64, y: f64, anchor: &str, text: &str| {
        shapes.push(format!(
            "<text x=\"{x:.0}\" y=\"{y:.0}\" text-anchor=\"{anchor}\">{text}</text>"
        ));
    };
    text(8.0, 22.0, "start", title);
    let mut bars = Vec::new();
    for (number, engine) in engines.iter().enumerate() {
        let x = LEFT + precise(u64::try_from(number).unwrap_or_default()) * 130.0;
        text(
            x + 18.0,
            42.0,
            "start",
            engine["engine"].as_str().unwrap_or_default(),
        );
        bars.push(format!(
            "<rect x=\"{x:.0}\" y=\"31\" width=\"12\" height=\"12\" fill=\"{}\"/>",
            COLOURS[number]
        ));
    }
    for place in 0..all.first().map_or(0, Vec::len) {
        let name = all[0][place]["operation"].as_str().unwrap_or_default();
        text(LEFT - 8.0, y + BAR, "end", name);
        for (engine, rows) in all.iter().enumerate() {
            let value = rows.get(place).map_or(0.0, &value);
            let (width, colour) = (value * scale, COLOURS[engine]);
            bars.push(format!(
                "<rect x=\"{LEFT}\" y=\"{y:.0}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>"
            ));
            text(LEFT + width + 6.0, y + BAR - 3.0, "start", &label(value));
            y += BAR + 1.0;
        }
        y += 8.0;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y:.0}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{}\n{}\n</svg>\n",
        bars.join("\n"),
        shapes.join("\n")
    )
}
