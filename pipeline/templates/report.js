// The page works without this script except for its sliders and charts.
(() => {
  "use strict";
  const read = (id) => {
    const element = document.getElementById(id);
    return element ? JSON.parse(element.textContent) : null;
  };
  const percent = (value) => `${Math.round(value * 100)} %`;

  function viewer(data) {
    const root = document.getElementById("viewer");
    const find = (selector) => root.querySelector(selector);
    const step = find("#checkpoint"), split = find("#split"), opacity = find("#opacity");
    const compare = find(".compare"), thumbs = find(".thumbs"), play = find("#play");
    const state = { direction: 0, image: 0 };
    let timer = null;

    function show() {
      const direction = data.directions[state.direction];
      const image = direction.images[state.image];
      const index = Number(step.value);
      const frame = image.steps[index];
      const at = data.steps[index];
      const said = `step ${at.toLocaleString("en")} of ${data.total.toLocaleString("en")}` +
        (data.switch === null ? "" : at > data.switch ? ", attention frozen" : ", attention learning");
      find("#checkpoint-value").textContent = said;
      step.setAttribute("aria-valuetext", said);
      for (const picture of root.querySelectorAll("[data-tile]")) {
        const source = picture.dataset.tile === "real" ? image.real : frame && frame[picture.dataset.tile];
        picture.hidden = !source;
        if (source) picture.src = source;
        picture.alt = `${picture.dataset.alt}, ${direction.label}, image ${state.image + 1}, ${said}`;
      }
      find("#coverage-value").textContent = frame ? `covers ${percent(frame.coverage)}` : "no picture saved";
    }

    function chooseImages() {
      const direction = data.directions[state.direction];
      state.image = Math.min(state.image, direction.images.length - 1);
      thumbs.replaceChildren(...direction.images.map((image, index) => {
        const label = document.createElement("label"), input = document.createElement("input");
        const picture = document.createElement("img");
        Object.assign(input, { type: "radio", name: "image", value: index, checked: index === state.image });
        Object.assign(picture, { src: image.real, alt: `image ${index + 1}` });
        input.addEventListener("change", () => { state.image = index; show(); });
        label.append(input, picture);
        return label;
      }));
      show();
    }

    function stop() {
      clearInterval(timer);
      timer = null;
      play.textContent = "Play";
    }

    for (const input of root.querySelectorAll("input[name=direction]")) {
      input.addEventListener("change", () => { state.direction = Number(input.value); chooseImages(); });
    }
    step.addEventListener("input", () => { stop(); show(); });
    split.addEventListener("input", () => {
      compare.style.setProperty("--split", `${split.value}%`);
      split.setAttribute("aria-valuetext", `${split.value} % before, ${100 - split.value} % after`);
    });
    opacity.addEventListener("input", () => {
      find("[data-tile=overlay]").style.opacity = opacity.value / 100;
      find("#opacity-value").textContent = `${opacity.value} %`;
    });
    play.addEventListener("click", () => {
      if (timer) return stop();
      const last = data.steps.length - 1;
      if (Number(step.value) === last) step.value = 0;
      show();
      play.textContent = "Pause";
      timer = setInterval(() => {
        step.value = Number(step.value) + 1;
        show();
        if (Number(step.value) >= last) stop();
      }, 450);
    });
    for (const input of [split, opacity]) input.dispatchEvent(new Event("input"));
    chooseImages();
    root.dataset.ready = "true";
  }

  // The chart library is stored packed; the page's policy allows exactly this text.
  async function unpack(id) {
    const packed = atob(document.getElementById(id).textContent.trim());
    const bytes = Uint8Array.from(packed, (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }

  function draw(charts) {
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const coarse = matchMedia("(pointer: coarse)").matches;
    const axis = { gridcolor: colour("--line"), linecolor: colour("--line"), fixedrange: coarse };
    for (const [key, figure] of Object.entries(charts.figures)) {
      let text = JSON.stringify(figure);
      if (dark) for (const [from, to] of Object.entries(charts.dark)) text = text.replaceAll(from, to);
      const { data, layout } = JSON.parse(text);
      layout.font = { family: style.getPropertyValue("--sans"), size: 12.5, color: colour("--muted") };
      layout.hoverlabel = { bgcolor: colour("--surface"), font: { color: colour("--ink") } };
      layout.dragmode = coarse ? false : "zoom"; // a finger scrolls the page, it does not zoom a chart
      layout.xaxis = { ...layout.xaxis, ...axis };
      layout.yaxis = { ...layout.yaxis, ...axis };
      const options = { responsive: true, displaylogo: false, displayModeBar: false };
      Plotly.react(`chart-${key}`, data, layout, options);
    }
    document.documentElement.dataset.charts = dark ? "dark" : "light";
  }

  async function drawCharts(charts) {
    try {
      await unpack("plotly");
    } catch (error) {
      for (const plot of document.querySelectorAll(".plot")) {
        plot.textContent = "This browser is too old to unpack the charts.";
      }
      return;
    }
    draw(charts);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw(charts));
  }

  function markSections() {
    const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
    const observer = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        for (const link of links.values()) link.removeAttribute("aria-current");
        links.get(entry.target.id)?.setAttribute("aria-current", "true");
      }
    }, { rootMargin: "-20% 0px -70% 0px" });
    for (const id of links.keys()) observer.observe(document.getElementById(id));
  }

  const pictures = read("viewer-data"), charts = read("charts-data");
  if (pictures) viewer(pictures);
  markSections();
  if (charts) setTimeout(drawCharts, 0, charts);
})();
