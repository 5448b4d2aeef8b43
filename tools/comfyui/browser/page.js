// The functions that Tab (tab.py) and Site (site.py) call in ComfyUI's page; loaded before the page's own scripts.

window.packPage = (() => {
  const graph = () => window.app.graph;
  const node = (id) => graph().getNodeById(id);
  const lastNode = () => graph().nodes.at(-1);
  const widget = (id, name) => node(id).widgets.find((entry) => entry.name === name);
  const panel = (id) => node(id)?.widgets.find((entry) => entry.name === "calibrated_rounding")?.element;
  const slotOf = (slots, name) => slots.findIndex((slot) => slot.name === name);
  // Slots and widgets have the places of the last drawing.
  const drawCanvas = () => window.LiteGraph.vueNodesMode || window.app.canvas.draw(true, true);
  /** Resolves when what `measure` returns has been the same for some frames. */
  const waitUntilSame = (measure, count) =>
    new Promise((resolve) => {
      let [before, frames] = ["", 0];
      const look = () => {
        const now = JSON.stringify(measure());
        frames = now === before ? frames + 1 : 0;
        before = now;
        frames > count ? resolve() : requestAnimationFrame(look);
      };
      look();
    });
  const frames = () =>
    graph().nodes.map((entry) => {
      const [left, top, width, height] = entry.getBounding();
      const drawn = document.querySelector(`[data-node-id="${entry.id}"]`)?.getBoundingClientRect();
      const { scale } = window.app.canvas.ds;
      return [left, top, left + (drawn ? drawn.width / scale : width), top + (drawn ? drawn.height / scale : height)];
    });
  const execute = (command) => window.app.extensionManager.command.execute(command);
  const contentOf = ({ id, nodes }) =>
    JSON.stringify([
      id,
      ...nodes
        .map((entry) => [Number(entry.id), entry.mode, entry.widgets_values, entry.inputs?.map(({ link }) => link)])
        .sort(([one], [other]) => one - other),
    ]);
  const textOf = (element, part) => element.querySelector(part)?.innerText ?? "";

  return {
    // The page
    /** Also the workflow of the last visit is loaded: until then the page may put it over any other. */
    isReady: () =>
      Boolean(window.app?.extensionManager?.setting && window.app.canvas?.graph) && !window.app.extensionManager.spinner,
    isTyping: () => document.activeElement.tagName === "INPUT",
    offersNode: (title) => Boolean(document.querySelector("[role=option]")?.innerText.trim().startsWith(title)),
    offersAny: (title) => [...document.querySelectorAll("[role=option]")].some((entry) => entry.innerText.includes(title)),
    offersNone: (title) =>
      ![...document.querySelectorAll("[role=option]")].some((entry) => entry.innerText.includes(title)),
    newWorkflow: () => execute("Comfy.NewBlankWorkflow"),
    queue: () => execute("Comfy.QueuePrompt"),
    setSetting: (name, value) => window.app.extensionManager.setting.set(name, value),

    // The graph. Places are in its coordinates; the view is neither moved nor scaled unless a caller does.
    serialize: () => graph().serialize(),
    loadGraph: (workflow) => window.app.loadGraphData(workflow),
    /** As if a file had been dragged from the desktop onto the canvas. */
    dropFile: (name, type, text) => {
      const dataTransfer = new DataTransfer();
      dataTransfer.items.add(new File([text], name, { type }));
      for (const kind of ["dragenter", "dragover", "drop"]) {
        const event = new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer, clientX: 700, clientY: 500 });
        window.app.canvas.canvas.dispatchEvent(event);
      }
    },
    /** Whether the graph has these nodes, with the same values and links. */
    holdsGraph: (workflow) => contentOf(graph().serialize()) === contentOf(workflow),
    setView: (offset) => Object.assign(window.app.canvas.ds, { scale: 1, offset }),
    /** Whether the view is still the same after some frames. */
    viewStays: async ([left, top]) => {
      const { ds } = window.app.canvas;
      await waitUntilSame(() => [ds.scale, ...ds.offset], 10);
      return ds.scale === 1 && ds.offset[0] === left && ds.offset[1] === top;
    },
    scale: () => window.app.canvas.ds.scale,
    countNodes: () => graph().nodes.length,
    hasNodes: (count) => graph().nodes.length === count,
    select: (id) => window.app.canvas.selectNode(node(id)),
    nodesOf: (type) =>
      graph()
        .nodes.filter((entry) => entry.type === type)
        .map(({ id }) => Number(id)),
    nodeTypes: () => graph().nodes.map((entry) => entry.type),
    nodeTitles: () => graph().nodes.map((entry) => entry.title),
    findNode: (type) => Number(graph().nodes.find((entry) => entry.type === type).id),
    lastNode: () => ({ id: Number(lastNode().id), place: [...lastNode().pos] }),
    lastNodeIsPlaced: () => !lastNode().flags?.ghost,
    placeLastNode: (place) => {
      lastNode().pos = place;
      graph().setDirtyCanvas(true, true);
    },
    createNode: (type, place) => {
      const created = window.LiteGraph.createNode(type);
      created.pos = place;
      graph().add(created);
      return Number(created.id);
    },
    connect: (source, output, target, input) =>
      void node(source).connect(slotOf(node(source).outputs, output), node(target), slotOf(node(target).inputs, input)),
    isConnected: (id, input) => node(id).isInputConnected(slotOf(node(id).inputs, input)),
    setWidth: (id, width) => {
      node(id).setSize([width, node(id).size[1]]);
      graph().setDirtyCanvas(true, true);
    },
    setMode: (id, mode) => {
      node(id).mode = mode;
    },
    setWidget: (id, name, value) => {
      widget(id, name).value = value;
      widget(id, name).callback?.(value);
    },
    widgetValue: (id, name) => widget(id, name).value,
    widgetOffers: (id, name, value) => (widget(id, name).options?.values ?? []).includes(value),
    numberWidgets: (id) =>
      node(id)
        .widgets.filter(({ type, hidden }) => type === "number" && !hidden)
        .map(({ name }) => name),
    widgetIs: (id, name, value) => widget(id, name).value === value,
    showsPictures: (id, count) => window.app.nodeOutputs[id]?.images?.length === count,
    isDrawn: (id, name) => {
      drawCanvas();
      return widget(id, name)?.last_y !== undefined;
    },
    menuIsOpen: () => Boolean(document.querySelector(".litecontextmenu .litemenu-entry")),

    // Places on the page, in pixels, and in the graph
    toPage: (place) => {
      const box = window.app.canvas.canvas.getBoundingClientRect();
      const [left, top] = window.app.canvas.convertOffsetToCanvas(place);
      return [left + box.left, top + box.top];
    },
    /** What lies at a place of the page: the element, and the node of the graph. */
    whatIsAt: ([left, top]) => {
      const box = window.app.canvas.canvas.getBoundingClientRect();
      const under = graph().getNodeOnPos(...window.app.canvas.convertCanvasToOffset([left - box.left, top - box.top]));
      return `${document.elementFromPoint(left, top)?.outerHTML.slice(0, 200)}, node ${under?.type}`;
    },
    outputPlace: (id, name) => (drawCanvas(), [...node(id).getOutputPos(slotOf(node(id).outputs, name))]),
    inputPlace: (id, name) => (drawCanvas(), [...node(id).getInputPos(slotOf(node(id).inputs, name))]),
    widgetPlace: (id, name) => [node(id).pos[0] + node(id).size[0] / 2, node(id).pos[1] + widget(id, name).last_y + 10],
    nodeBoxes: () =>
      graph().nodes.map(({ id }) => {
        const { left, top, right, bottom } = document.querySelector(`[data-node-id="${id}"]`).getBoundingClientRect();
        return [left, top, right, bottom];
      }),

    /** Left, top, right and bottom of each node with its title, in the graph; in Nodes 2.0 as the page draws it. */
    nodeFrames: () => frames(),
    groupFrames: () =>
      graph().groups.map(({ pos: [left, top], size: [width, height] }) => [left, top, left + width, top + height]),
    fitView: () => execute("Comfy.Canvas.FitView"),

    // The pack's panel of a node
    panel,
    panelIsNarrower: (id, width) => panel(id).offsetWidth < width && panel(id).offsetWidth > width - 60,
    readPanel: (id) => {
      const element = panel(id);
      if (!element) return { phase: "absent", title: "", facts: "", notices: "", words: "", files: [], bars: 0 };
      return {
        phase: element.dataset.phase,
        title: textOf(element, ".calro-head"),
        facts: textOf(element, ".calro-facts"),
        notices: textOf(element, ".calro-notices"),
        words: textOf(element, ".calro-words"),
        files: [...element.querySelectorAll(".calro-file .calro-tail")].map((part) => part.title),
        bars: (element.querySelector("svg")?.innerHTML.match(/M/g) ?? []).length,
        height: element.offsetHeight,
        place: element.offsetTop,
        node: node(id).size[1],
      };
    },
    /** Press the button of a panel with this label; false where there is none. */
    pressIn: (id, label) => {
      const found = [...panel(id).querySelectorAll("button")].find((entry) => entry.textContent === label);
      found?.click();
      return Boolean(found);
    },
    /** HTML of the parts of a panel whose content is wider than they are. */
    listOverflowing: (id) =>
      [...panel(id).querySelectorAll("*")]
        .filter((part) => part.clientWidth && part.scrollWidth > part.clientWidth + 1)
        .filter((part) => getComputedStyle(part).overflowX === "visible")
        .map((part) => part.outerHTML),
    /** HTML of the texts and buttons of a panel that are cut off or lie outside it. */
    listCutOff: (id) => {
      const box = panel(id).getBoundingClientRect();
      const isOutside = (part) => {
        const { left, right, top, bottom } = part.getBoundingClientRect();
        return left < box.left || right > box.right + 1 || top < box.top || bottom > box.bottom + 1;
      };
      const isClipped = (part) => part.scrollWidth > part.clientWidth + 1 || part.scrollHeight > part.clientHeight + 1;
      const parts = panel(id).querySelectorAll("b, button, .calro-facts, .calro-facts > span > span, .calro-notices");
      return [...parts]
        .filter((part) => part.offsetWidth && (isOutside(part) || isClipped(part)))
        .map((part) => part.outerHTML);
    },
    /** Resolves when the page has been painted twice, so with what has come until now. */
    waitUntilPainted: () =>
      new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(() => resolve(true)))),
    waitUntilStill: (element) => waitUntilSame(() => element.getBoundingClientRect(), 10),
    /** Also every node is drawn, and has grown to what it shows. */
    waitUntilNodesAreStill: () => waitUntilSame(() => [document.querySelectorAll("[data-node-id]").length, frames()], 60),
  };
})();
