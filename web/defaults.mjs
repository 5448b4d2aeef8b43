// A target in gigabytes starts at a size that fits the model (`default_gb`, nodes/page/check.py) where the user has just
// asked for one. Values that a workflow brings stay.

const NAME = "format.target.target_gb";

export class TargetDefault {
  constructor(node) {
    Object.assign(this, { node, present: null, initial: null });
  }

  /** To be called often, with what the server says of the node's plan. */
  look(plan) {
    const widget = (this.node.widgets ?? []).find(({ name }) => name === NAME);
    const appeared = this.present === false && widget;
    this.present = Boolean(widget);
    if (appeared) this.initial = widget.value;
    if (widget?.value !== this.initial) this.initial = null;
    if (this.initial == null || !plan?.default_gb) return;
    this.initial = null;
    if (plan.default_gb < (widget.options?.min ?? 0)) return;
    widget.value = plan.default_gb;
    widget.callback?.(plan.default_gb);
  }
}
