"use strict";
// Draws every figure in the page's own colours, and again when the theme or the width changes.
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 600px)");
  const axes = (layout) => Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key));

  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);

  // What depends on the theme, as an update of the layout.
  const colours = (layout) => {
    const style = getComputedStyle(root);
    const ink = style.getPropertyValue("--ink").trim();
    const soft = style.getPropertyValue("--soft").trim();
    const card = style.getPropertyValue("--card").trim();
    const rule = style.getPropertyValue("--rule").trim();
    const out = {
      "font.color": ink,
      "hoverlabel.bgcolor": card,
      "hoverlabel.bordercolor": rule,
      "hoverlabel.font.color": ink,
    };
    for (const axis of axes(layout)) {
      out[`${axis}.linecolor`] = soft;
      out[`${axis}.tickcolor`] = soft;
    }
    return out;
  };

  // On a phone a finger that scrolls the page must not zoom a figure, and names on points have no room.
  const fitted = (figure) => {
    const layout = structuredClone(figure.layout);
    let data = structuredClone(figure.data);
    if (narrow.matches) {
      for (const [key, value] of Object.entries(layout.meta?.narrow ?? {})) {
        layout[key] = typeof value === "object" ? { ...layout[key], ...value } : value;
      }
      layout.dragmode = false;
      layout.font = { ...layout.font, size: 11 };
      layout.margin = { ...layout.margin, l: 4, r: 8 };
      for (const axis of axes(layout)) {
        const title = { ...layout[axis].title, font: { ...layout[axis].title?.font, size: 11 } };
        layout[axis] = { ...layout[axis], title, fixedrange: true };
      }
      data = data.map((trace) => {
        const out = { ...trace };
        if (out.mode === "markers+text") out.mode = "markers";
        return out;
      });
    }
    return { data, layout };
  };

  const set = (target, path, value) => {
    const keys = path.split(".");
    const last = keys.pop();
    let place = target;
    for (const key of keys) place = place[key] = { ...place[key] };
    place[last] = value;
  };

  const draw = async (id) => {
    const { data, layout } = fitted(figures[id]);
    for (const [path, value] of Object.entries(colours(layout))) set(layout, path, value);
    const plot = document.getElementById(id);
    plot.style.minHeight = `${layout.height}px`;
    return Plotly.react(plot, data, layout, { responsive: true, displayModeBar: false });
  };

  const shown = (id) => !document.getElementById(id).closest("[hidden]");
  // One that cannot be drawn takes none of the others with it.
  const drawAll = () =>
    Promise.all(Object.keys(figures).filter(shown).map((id) => draw(id).catch(console.error)));

  // The button says what it does.
  const name = () => {
    button.textContent = dark() ? "Switch to light" : "Switch to dark";
  };

  const paint = () => {
    name();
    return Promise.all(
      Object.keys(figures).filter(shown).map((id) => {
        const plot = document.getElementById(id);
        return Plotly.relayout(plot, colours(plot.layout));
      }),
    );
  };

  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    paint();
  });
  system.addEventListener("change", paint);
  narrow.addEventListener("change", drawAll);
  for (const select of document.querySelectorAll("select[data-for]")) {
    select.addEventListener("change", () => {
      const figure = figures[select.dataset.for];
      figure.data[0].z = figure.choices[Number(select.value)];
      draw(select.dataset.for);
    });
  }
  // Panels of which those of one option are shown: a select before them, made here, because without a script all are.
  for (const first of document.querySelectorAll("[data-among]")) {
    const group = [...document.querySelectorAll(`[data-among="${first.dataset.among}"]`)];
    const options = [...new Set(group.map((panel) => panel.dataset.option))];
    if (first !== group[0] || options.length < 2) continue;
    const [line, text, select] = ["p", "label", "select"].map((tag) => document.createElement(tag));
    line.className = "choice wide";
    text.append(`${first.dataset.what}: `, select);
    select.append(...options.map((option) => new Option(option)));
    line.append(text);
    first.before(line);
    const show = () => group.forEach((panel) => (panel.hidden = panel.dataset.option !== select.value));
    select.addEventListener("change", () => {
      show();
      fit();
      for (const plot of group.flatMap((panel) => [...panel.querySelectorAll(".plot")]))
        if (shown(plot.id)) draw(plot.id);
    });
    show();
  }

  // A table that its frame is too narrow for is stacked.
  const frames = Array.from(document.querySelectorAll(".frame"));
  const fit = () => {
    for (const frame of frames) frame.classList.remove("stacked");
    const wide = frames.filter((frame) => frame.scrollWidth > frame.clientWidth);
    for (const frame of wide) frame.classList.add("stacked");
  };
  addEventListener("resize", fit);

  const folds = Array.from(document.querySelectorAll("details"));
  for (const fold of folds) fold.addEventListener("toggle", fit);
  // A link to a section that is folded opens it, and paper shows what is folded.
  const unfold = () => {
    const fold = document.getElementById(decodeURIComponent(location.hash.slice(1)))?.querySelector(":scope > details");
    if (fold) fold.open = true;
  };
  addEventListener("hashchange", unfold);
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = folds.filter((fold) => !fold.open);
    for (const fold of closed) fold.open = true;
    fit();
  });
  addEventListener("afterprint", () => {
    for (const fold of closed) fold.open = false;
  });

  name();
  unfold();
  fit();
  drawAll().then(() => {
    root.dataset.drawn = String(Object.keys(figures).filter(shown).length);
  });
})();
