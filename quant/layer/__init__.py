"""One layer from its weight to its codes and their errors.

The files in the order in which a layer passes through them:

1. `task`: `LayerTask`, what is to be done, and `QuantizedLayer`, the result.
2. `quantize`: `quantize_layer`, the entry. It runs the method that the recipe names.
3. `operands`: the weight in float32, padded and rotated as it is stored, and the recorded input rows beside it.
4. `activations`: the same rows as ComfyUI's 8-bit product rounds them.
5. `methods`: nearest, svd and calibrated. Each finds scales, then codes (`..rounding`).
6. `acceptance`: each weight row keeps its learned codes only if held-out rows show them better than nearest.
7. `validator` measures output errors on the held-out rows; `measurement` makes the result, with all errors as one value
   (`layer_errors`) that travels to the report, the page and JSON.
8. `choice`: where a setting is left to measurement, an alternative replaces the default only if it is surely better.
9. `bias`: the layer's bias may absorb the mean of the output error that is left.
"""
