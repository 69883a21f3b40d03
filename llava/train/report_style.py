"""Style sheet of report.html: a calm page that follows the reader's light or dark setting, and prints."""

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --text: #1b2430;
  --dim: #66717f;  --line: #e2e6eb; --grid: #eceff3; --good: #1f7a4d; --goodback: #dff3e8; --fair: #8a5a00;
  --fairback: #fcefd2;  --bad: #a3262a; --badback: #fbe0e0; --c0: #2563c9; --c1: #d9730d; --c2: #7a4fc0;
  --c3: #c6303e;
  --c4: #6b7685;  --c5: #178a7a; --c6: #b0399b; --c7: #8a7a12; }
@media (prefers-color-scheme: dark) { :root { --page: #11151b; --card: #1a2029; --text: #e4e9f0;
  --dim: #94a0af;  --line: #2c3542; --grid: #252d38; --good: #7ddcab; --goodback: #16382a; --fair: #f0c674;
  --fairback: #3d3117;  --bad: #ff9a9a; --badback: #431f22; --c0: #6ea3ff; --c1: #f5a04c; --c2: #b394f5;
  --c3: #ff7a85;
  --c4: #9aa6b5;  --c5: #4fd0be; --c6: #ee86d8; --c7: #d9c75a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 28px 20px 40px; }
header p { color: var(--dim); margin: 4px 0 18px; overflow-wrap: anywhere; }
h1 { font-size: 26px; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 34px 0 10px; }
h3 { font-size: 14px; margin: 16px 0 6px; }
p { margin: 0 0 8px; }
footer { margin-top: 40px; }
footer, .dim { color: var(--dim); font-size: 13px; }
.badge { display: inline-block; border-radius: 99px; padding: 1px 9px; font-size: 12px; font-weight: 600;
  vertical-align: middle; }
.good { color: var(--good); background: var(--goodback); }
.fair { color: var(--fair); background: var(--fairback); }
.bad { color: var(--bad); background: var(--badback); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 10px; }
.tile, figure, .card, .recipe > div, .charts > div:not(:empty), section > .scroll, .warnings {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.tile { padding: 10px 14px; }
.tile span, .tile small { display: block; color: var(--dim); font-size: 12px; }
.tile b { font-size: 21px; font-weight: 650; font-variant-numeric: tabular-nums; white-space: nowrap; }
.warnings { margin: 0 0 8px; padding: 10px 14px 10px 32px; border-left: 4px solid var(--c1); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); gap: 12px;
  align-items: start; margin-top: 10px; }
.charts > div:not(:empty), section > .scroll { padding: 8px 14px; overflow-x: auto; }
figure { margin: 0; padding: 10px 12px 4px; }
figcaption { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 2px 14px; font-size: 13px;
  font-weight: 600; margin-bottom: 4px; }
.legend { font-weight: 400; color: var(--dim); }
.key { margin-left: 12px; white-space: nowrap; }
.key i { display: inline-block; width: 12px; height: 3px; margin-right: 5px; vertical-align: middle;
  border-radius: 2px; background: currentColor; }
.key i.dots { width: 7px; height: 7px; border-radius: 50%; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--dim); font-size: 11px; font-variant-numeric: tabular-nums; }
svg .grid { stroke: var(--grid); }
svg .axis { stroke: var(--line); }
svg polyline { fill: none; stroke: currentColor; stroke-width: 1.8; stroke-linejoin: round; }
svg polyline.faint { stroke-width: 1; }
.faint { opacity: 0.38; }
svg circle, svg rect { fill: currentColor; }
svg rect.hint { fill: transparent; }
svg rect.hint:hover { fill: var(--dim); opacity: 0.18; }
.c0 { color: var(--c0); } .c1 { color: var(--c1); } .c2 { color: var(--c2); } .c3 { color: var(--c3); }
.c4 { color: var(--c4); } .c5 { color: var(--c5); } .c6 { color: var(--c6); } .c7 { color: var(--c7); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(340px, 100%), 1fr)); gap: 12px; }
.card { display: flex; gap: 14px; padding: 14px; }
.card > div:last-child { min-width: 0; flex: 1; }
.card img { display: block; width: 96px; border-radius: 6px; margin-bottom: 6px; image-rendering: auto; }
.pictures:empty { display: none; }
.question { font-weight: 600; white-space: pre-wrap; overflow-wrap: anywhere; }
dl { margin: 0 0 8px; }
dt { color: var(--dim); font-size: 12px; margin-top: 6px; }
dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; font-size: 13px; }
th, td { text-align: left; vertical-align: top; padding: 4px 10px 4px 0; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; }
tr:last-child > * { border-bottom: 0; }
th { font-weight: 600; white-space: nowrap; }
.pairs th { font-weight: 400; color: var(--dim); width: 45%; }
td.figure { font-variant-numeric: tabular-nums; white-space: nowrap; }
.recipe { columns: 3 320px; column-gap: 12px; }
.recipe > div { break-inside: avoid; padding: 4px 14px 8px; margin-bottom: 12px; }
.recipe h3 { margin: 8px 0 4px; }
.recipe td { font-weight: 600; }
.recipe details td { font-weight: 400; color: var(--dim); }
details { font-size: 13px; margin-bottom: 8px; }
summary { cursor: pointer; color: var(--dim); }
@media print { body { background: none; } .card, figure, .tile { break-inside: avoid; } }
"""
