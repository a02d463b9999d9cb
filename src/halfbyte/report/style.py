"""The style sheet of every report: system fonts, one accent a meaning, light and dark."""

# The palette is checked against a contrast of 4.5:1 for text and 3:1 for bars by tests/report/test_style.py.
LIGHT = {
    "ground": "#ffffff", "panel": "#f5f6f8", "text": "#1c2126", "muted": "#57606a", "rule": "#d3d8de",
    "linear": "#2c6aa6", "convolution": "#4d7a2d", "product": "#7b56ab", "other": "#66717c", "lowest": "#b8390e",
}  # fmt: skip
DARK = {
    "ground": "#14181c", "panel": "#1d2329", "text": "#e3e7eb", "muted": "#a0aab4", "rule": "#38414a",
    "linear": "#6ba6de", "convolution": "#92bb63", "product": "#b79ae3", "other": "#939da7", "lowest": "#ff9a66",
}  # fmt: skip


def _variables(palette: dict[str, str]) -> str:
    return "".join(f"--{name}:{colour};" for name, colour in palette.items())


_PALETTE = f"""
:root {{ color-scheme: light dark; {_variables(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}
"""

# What every page of ours begins with.
BASE = (
    _PALETTE
    + """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0; background: var(--ground); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", "DejaVu Sans", sans-serif;
  overflow-wrap: break-word;
}
"""
)

STYLE = (
    BASE
    + """
header, main { max-width: 1080px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 32px; }
main { padding-bottom: 48px; }
code, pre, h1, .code, .bars .label {
  font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", "Liberation Mono", monospace;
}
h1 { margin: 0; font-size: 24px; line-height: 1.3; font-weight: 600; }
h1 span { color: var(--muted); font-weight: 400; }
h2 { margin: 44px 0 10px; padding-bottom: 6px; border-bottom: 1px solid var(--rule); font-size: 18px; }
h3 { margin: 0 0 6px; font-size: 14px; }
h3 span { color: var(--muted); font-weight: 400; }
p { margin: 0 0 12px; max-width: 76ch; }
main > p:first-child { margin-top: 12px; font-weight: 600; color: var(--lowest); }

.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: 12px; margin: 24px 0 0; }
.tiles div { padding: 12px 14px; background: var(--panel); border: 1px solid var(--rule); border-radius: 4px; }
.tiles dt { font-size: 13px; color: var(--muted); }
.tiles dd { margin: 0; font-size: 13px; color: var(--muted); }
.tiles dd.value {
  font-size: 24px; line-height: 1.35; font-weight: 600; color: var(--text); font-variant-numeric: tabular-nums;
}

.scroll { overflow-x: auto; margin: 0 0 12px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 28px 5px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule); }
th:last-child, td:last-child { padding-right: 2px; }
thead th { font-size: 13px; font-weight: 600; color: var(--muted); vertical-align: bottom; }
tbody th { font-weight: 400; }
.number { text-align: right; white-space: nowrap; }
thead .number { white-space: normal; }
.dense th, .dense td { padding-right: 16px; }
.dense th:last-child, .dense td:last-child { padding-right: 2px; }
.whole { white-space: nowrap; }
.code { font-size: 13px; }
td.code { min-width: 16ch; overflow-wrap: anywhere; }

pre {
  margin: 0 0 12px; padding: 12px 14px; overflow-x: auto; overflow-wrap: normal; font-size: 13px; line-height: 1.5;
  background: var(--panel); border: 1px solid var(--rule); border-radius: 4px;
}
details { margin: 12px 0; }
summary { padding: 4px 0; cursor: pointer; font-weight: 600; }
a:focus-visible, summary:focus-visible, .scroll:focus-visible, pre:focus-visible { outline: 2px solid var(--linear); }
details .scroll { margin-top: 8px; }

.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 0 0 16px; padding: 0; list-style: none; }
.legend li { font-size: 13px; }
.legend li::before {
  content: ""; display: inline-block; width: 11px; height: 11px; margin-right: 7px; background: currentColor;
}
.legend span { color: var(--text); }
.panels { columns: 2; column-gap: 40px; }
.panel { break-inside: avoid; overflow-x: auto; padding-bottom: 20px; }
.bars { display: block; overflow: visible; }
.bars text { font-size: 12px; fill: var(--text); }
.bars .label { text-anchor: end; }
.bars .tick { text-anchor: middle; fill: var(--muted); }
.bars .value {
  font-variant-numeric: tabular-nums; paint-order: stroke; stroke: var(--ground); stroke-width: 4px;
}
.bars line { stroke: var(--rule); }
.bars .zero { stroke: var(--muted); }
.bars rect { fill: currentColor; }
.bars .lowest text { fill: var(--lowest); font-weight: 700; }
.sizes { max-width: 640px; }
.wide { max-width: 760px; }
.spans rect { opacity: .55; }
.bars .seen { stroke: var(--text); stroke-width: 1.5px; }

.bits { display: block; max-width: 1000px; overflow: visible; padding-right: 22px; }
.bits rect { fill: currentColor; }
.bits line { stroke: var(--rule); }
.bits .zero { stroke: var(--text); }
.bits text, .histogram text { font-size: 12px; fill: var(--muted); }
.bits .end { text-anchor: end; }
.bits .tick { text-anchor: middle; }

figure { margin: 0; }
figcaption { font-size: 13px; color: var(--muted); }
.pair { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 12px 40px; margin: 0 0 28px; }
.histogram { display: block; }
.histogram path { fill: currentColor; opacity: .6; }
.histogram line { stroke: var(--muted); }
.histogram .level { stroke: var(--text); stroke-width: 1px; opacity: .7; }
.histogram .tick { text-anchor: middle; }

.attention { display: flex; flex-wrap: wrap; gap: 16px 40px; margin: 0 0 28px; }
.maps { display: flex; gap: 6px; margin-bottom: 4px; }
.maps small { display: block; font-size: 12px; color: var(--muted); }
.maps img, .map {
  display: block; width: 96px; height: 96px; object-fit: contain; border: 1px solid var(--rule);
}
.map path { fill: var(--text); shape-rendering: crispEdges; }
img { image-rendering: pixelated; }

.cards {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 12px; margin: 0; padding: 0;
  list-style: none;
}
.cards li {
  display: flex; gap: 12px; padding: 10px; background: var(--panel); border: 1px solid var(--rule); border-radius: 4px;
}
.cards img { flex: none; width: 72px; height: 72px; object-fit: contain; }
.cards dl { margin: 0; min-width: 0; font-size: 13px; }
.cards dt { color: var(--muted); line-height: 1.2; }
.cards dd { margin: 0 0 3px; line-height: 1.3; }
.cards .wrong { font-weight: 700; color: var(--lowest); }
.cards .right { font-weight: 700; color: var(--linear); }

.scatter { display: block; width: calc(100% - 64px); max-width: 700px; overflow: visible; margin: 0 16px 12px 48px; }
.scatter text { font-size: 12px; fill: var(--muted); }
.scatter line { stroke: var(--rule); }
.scatter .tick { text-anchor: middle; }
.scatter .end { text-anchor: end; }
.scatter .reference { stroke: var(--muted); stroke-dasharray: 5 4; }
.scatter circle { fill: var(--ground); stroke: var(--linear); stroke-width: 2px; }
.scatter .best { fill: var(--linear); }
.scatter .front { fill: none; stroke: var(--linear); stroke-width: 1.5px; }
.scatter .letter {
  font-size: 14px; font-weight: 700; fill: var(--text); paint-order: stroke; stroke: var(--ground); stroke-width: 4px;
}
.scatter .name { fill: var(--text); }
.warnings { margin: 0 0 16px; padding: 10px 14px 10px 30px; background: var(--panel); border: 1px solid var(--rule); }
.warnings li { max-width: 90ch; }

nav ul { display: flex; flex-wrap: wrap; gap: 2px 18px; margin: 14px 0 0; padding: 0; list-style: none; }
nav a { color: var(--linear); font-size: 14px; }

.linear { color: var(--linear); }
.convolution { color: var(--convolution); }
.product { color: var(--product); }
.other { color: var(--other); }
.lowest { color: var(--lowest); }

@media (max-width: 820px) {
  .tiles { grid-template-columns: repeat(2, 1fr); }
  .panels { columns: 1; }
  .pair { grid-template-columns: minmax(0, 1fr); }
}
@media (max-width: 480px) {
  header, main { padding-left: 16px; padding-right: 16px; }
  h1 { font-size: 18px; }
  .tiles { gap: 8px; }
  .tiles div { padding: 10px; }
  .tiles dd.value { font-size: 20px; }
  table { font-size: 14px; }
  th, td { padding-right: 10px; }
}
"""
)
