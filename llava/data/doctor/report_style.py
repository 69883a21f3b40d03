"""The style sheet of the doctor's report: one file, light and dark, nothing from outside."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root{color-scheme:light dark;
--page:#f6f7f9;--card:#fff;--ink:#1b2330;--soft:#5d6878;--line:#e2e6ec;--code:#f0f2f6;
--error:#c8323c;--error-bg:#fdecec;--warning:#a86400;--warning-bg:#fdf3e0;--info:#2f6fb5;--info-bg:#e9f2fc;
--good:#1f8a4c;--good-bg:#e6f6ec;--text-bar:#4c78c8;--picture-bar:#d98a3d;--total-bar:#4f9c86;
--trained:#d5f0dd;--trained-ink:#0f5a2d;--picture-chip:#ede4fb;--picture-ink:#5b35a0}
@media (prefers-color-scheme:dark){:root{
--page:#11151b;--card:#1a2029;--ink:#e4e9f0;--soft:#93a0b2;--line:#2c3542;--code:#232b37;
--error:#ff8087;--error-bg:#3a2024;--warning:#f0b45a;--warning-bg:#382c18;--info:#79b4f5;--info-bg:#1c2d42;
--good:#67d391;--good-bg:#1a3325;--text-bar:#6f9bea;--picture-bar:#e4a25e;--total-bar:#67b8a0;
--trained:#1e4a30;--trained-ink:#b9f0cb;--picture-chip:#35284f;--picture-ink:#cdb5f7}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);line-height:1.5;
font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif;font-size:15px}
main{max-width:1040px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:25px;margin:0;letter-spacing:-.01em;overflow-wrap:anywhere}
h2{font-size:18px;margin:40px 0 12px}
h3{font-size:14px;margin:22px 0 6px;color:var(--soft);font-weight:600}
p{margin:6px 0}.soft{color:var(--soft)}
header{display:flex;gap:16px;align-items:flex-start;justify-content:space-between;flex-wrap:wrap}
.eyebrow{font-size:12px;text-transform:uppercase;letter-spacing:.08em;color:var(--soft);margin:0 0 2px}
.verdict{padding:8px 16px;border-radius:999px;font-weight:650;white-space:nowrap}
.verdict.error,.badge.error{background:var(--error-bg);color:var(--error)}
.verdict.warning,.badge.warning{background:var(--warning-bg);color:var(--warning)}
.verdict.good{background:var(--good-bg);color:var(--good)}
.badge.info{background:var(--info-bg);color:var(--info)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(118px,1fr));gap:12px;margin:24px 0 8px}
.tile,.card{background:var(--card);border:1px solid var(--line);border-radius:12px}
.tile{padding:14px 16px}.tile b{display:block;font-size:23px;font-weight:650;
font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:13px}.tile b.error{color:var(--error)}
.tile b.warning{color:var(--warning)}
.card{padding:16px 18px;margin:12px 0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th{font-size:12px;font-weight:600;color:var(--soft);text-align:left;padding:6px 10px;
border-bottom:1px solid var(--line);white-space:nowrap}
td{padding:7px 10px;border-bottom:1px solid var(--line);vertical-align:top}
tr:last-child td{border-bottom:0}.num{text-align:right;white-space:nowrap}
tr.chosen td{background:var(--info-bg);font-weight:600}
.kinds{background:var(--card);border:1px solid var(--line);border-radius:12px;overflow:hidden}
details{border-bottom:1px solid var(--line)}details:last-child{border-bottom:0}
details[open]{background:linear-gradient(var(--code),var(--code)) no-repeat 0 0/3px 100%}
summary{display:flex;gap:12px;align-items:center;padding:7px 14px;cursor:pointer;list-style:none}
summary:hover{background:var(--code)}
summary::-webkit-details-marker{display:none}
summary:before{content:"";flex:none;border:5px solid transparent;border-left-color:var(--soft);
margin-right:-7px;transition:transform .12s;transform-origin:3px 5px}
details[open]>summary:before{transform:rotate(90deg)}
summary:focus-visible{outline:2px solid var(--info);outline-offset:-2px}
.badge{font-size:11.5px;font-weight:650;border-radius:6px;padding:2px 8px;width:68px;text-align:center;
flex:none}
summary .name{font-weight:600;flex:1;min-width:140px}
summary .name small{margin-left:6px;font-weight:400;
font:12px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;
color:var(--soft)}
.bar{width:150px;height:6px;border-radius:3px;background:var(--code);flex:none;overflow:hidden}
.bar i{display:block;height:100%;border-radius:3px}
.bar .error{background:var(--error)}.bar .warning{background:var(--warning)}.bar .info{background:var(--info)}
.count{width:74px;text-align:right;font-variant-numeric:tabular-nums;font-weight:650;flex:none}
.examples{border-top:1px solid var(--line);padding:4px 14px 12px}
.example{display:flex;gap:12px;padding:9px 0;border-bottom:1px dashed var(--line);align-items:flex-start}
.example:last-child{border-bottom:0}
.example div{flex:1;min-width:0;overflow-wrap:anywhere}
.place{font:12.5px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;color:var(--soft)}
.thumb{width:64px;height:64px;object-fit:contain;border-radius:6px;background:var(--code);flex:none;
border:1px solid var(--line)}
.remedy{color:var(--soft);margin:8px 0 4px}.remedy b{color:var(--ink);font-weight:600}
svg{width:100%;height:auto;display:block}
svg text{fill:var(--soft);font:12px system-ui,-apple-system,"Segoe UI",sans-serif}
svg .chart-title{fill:var(--ink);font-weight:600;font-size:13.5px}
svg .end{text-anchor:end}svg .middle{text-anchor:middle}
svg .grid{stroke:var(--line)}svg .axis{stroke:var(--soft)}
svg .limit{stroke:var(--error);stroke-width:1.5;stroke-dasharray:5 4}svg .limit-text{fill:var(--error)}
.prompt{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--code);border-radius:8px;
padding:12px 14px;
font:13px/1.6 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;flex:1;min-width:0;margin:0;
max-height:360px;overflow-y:auto}
.prompt mark{background:var(--trained);color:var(--trained-ink);border-radius:3px;padding:1px 0}
.chip{background:var(--picture-chip);color:var(--picture-ink);border-radius:5px;padding:1px 7px;
font-size:12px}
.sample{display:flex;gap:14px;align-items:flex-start}.sample .thumb{width:112px;height:112px}
.legend span{margin-right:16px}
.legend mark{background:var(--trained);color:var(--trained-ink);border-radius:3px;padding:1px 5px}
footer{margin-top:40px;color:var(--soft);font-size:13px}
@media (max-width:640px){.bar{display:none}.sample,.example{flex-wrap:wrap}}
@media print{details{break-inside:avoid}.prompt{max-height:none}}
"""
