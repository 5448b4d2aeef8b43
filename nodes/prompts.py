"""The default prompts for calibrating a text encoder."""

PROMPTS = """\
a red bicycle leaning against a whitewashed wall, late afternoon light
portrait of an old fisherman, deep wrinkles, wool cap, shallow depth of field, 85mm
isometric pixel art of a tiny ramen shop at night, glowing signs, rain on the street
an otter
The camera drifts slowly over a frozen lake at dawn. Mist rises from the ice while a lone skater draws wide circles; \
her scarf trails behind her, and far away the first sun catches the tops of dark pines. Muted blues, one touch of \
orange, quiet and wide.
watercolour botanical plate of a blue thistle with handwritten Latin labels, cream paper
a poster that says "OPEN ALL SUMMER" in bold yellow letters above a stack of three watermelons
two children building a sandcastle: the girl on the left wears a green hat, the boy on the right holds a blue bucket
low quality, blurry, jpeg artifacts, extra fingers, deformed hands, bad anatomy, watermark, text, signature
macro photo of a soap bubble, iridescent swirls, black background, highly detailed, sharp focus
1knight, silver armour, torn red cape, castle ruins, sunset, from below, dynamic pose, masterpiece, best quality
A cutaway technical drawing of a lighthouse, showing the spiral stair, the lamp room with its lens of glass rings, \
the keeper's kitchen on the second floor and the rock below, drawn with fine ink lines and flat washes of grey and \
brick red, every part numbered.
ein verschneites Bergdorf bei Nacht, warme Fenster, Sternenhimmel
abstract composition of overlapping translucent circles, 1960s print, off-register ink
"""
"""One per line: short and long, plain sentences and tags, and a negative prompt."""
