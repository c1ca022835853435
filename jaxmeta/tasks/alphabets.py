"""Which alphabet each of Omniglot's characters is of, in the official numbering.

The official zips tell by their folders, whose names these are; the arrays that go around have the numbers alone. The
numbering follows the alphabets' short names: Burmese is Myanmar there, the Anglo-Saxon one Futhorc.
"""

import numpy as np

# (name, characters) in the order of the numbers: 964 of images_background, then 659 of images_evaluation
ALPHABETS = (
    ("Arcadian", 26),
    ("Armenian", 41),
    ("Asomtavruli_(Georgian)", 40),
    ("Balinese", 24),
    ("Bengali", 46),
    ("Blackfoot_(Canadian_Aboriginal_Syllabics)", 14),
    ("Braille", 26),
    ("Cyrillic", 33),
    ("Early_Aramaic", 22),
    ("Syriac_(Estrangelo)", 23),
    ("Anglo-Saxon_Futhorc", 29),
    ("Futurama", 26),
    ("Grantha", 43),
    ("Greek", 24),
    ("Gujarati", 48),
    ("Hebrew", 22),
    ("Japanese_(hiragana)", 52),
    ("Inuktitut_(Canadian_Aboriginal_Syllabics)", 16),
    ("Malay_(Jawi_-_Arabic)", 40),
    ("Japanese_(katakana)", 47),
    ("Korean", 40),
    ("Latin", 26),
    ("Alphabet_of_the_Magi", 20),
    ("Mkhedruli_(Georgian)", 41),
    ("Burmese_(Myanmar)", 34),
    ("N_Ko", 33),
    ("Ojibwe_(Canadian_Aboriginal_Syllabics)", 14),
    ("Sanskrit", 42),
    ("Tagalog", 17),
    ("Tifinagh", 55),
    ("Angelic", 20),
    ("Atemayar_Qelisayer", 26),
    ("Atlantean", 26),
    ("Aurek-Besh", 26),
    ("Avesta", 26),
    ("Ge_ez", 26),
    ("Glagolitic", 45),
    ("Gurmukhi", 45),
    ("Kannada", 41),
    ("Keble", 26),
    ("Malayalam", 47),
    ("Manipuri", 40),
    ("Mongolian", 30),
    ("Old_Church_Slavonic_(Cyrillic)", 45),
    ("Oriya", 46),
    ("Syriac_(Serto)", 23),
    ("Sylheti", 28),
    ("Tengwar", 25),
    ("Tibetan", 42),
    ("ULOG", 26),
)


def alphabet_of_each() -> np.ndarray:
    """[1623] names, character XXXX of the official files at XXXX − 1.

    >>> alphabet_of_each()[[393, 416, 417]].tolist()
    ['Greek', 'Greek', 'Gujarati']
    """
    names, counts = zip(*ALPHABETS, strict=True)
    return np.repeat(names, counts)
