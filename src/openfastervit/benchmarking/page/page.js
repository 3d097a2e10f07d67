"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const config = { displayModeBar: false, responsive: true };
const select = document.getElementById("group");
// On a narrow screen, less around the charts, smaller letters, and the names of peers on touch alone.
const fitted = (layout) => {
  if (window.innerWidth > 640) return layout;
  return { ...layout, font: { ...layout.font, size: 12 }, margin: { ...layout.margin, r: 8 } };
};
const labelled = (trace) => (window.innerWidth <= 640 && trace.name === "peers" ? { ...trace, mode: "markers" } : trace);
const draw = (id, chart) => Plotly.react(id, chart.data.map(labelled), fitted(chart.layout), config);
const show = () => draw("measured", data.measured[select.value]);
if (select) {
  select.addEventListener("change", show);
  show();
}
draw("paper", data.paper);
