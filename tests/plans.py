"The part of a small study plan that several tests share."

TWO_METHODS = """methods:
  pixels: {method: pixels}
  prototypes: {method: frozen, net: supervised, kind: features, centred: true}
controls: {shuffled: {shuffle: prototypes}}
at_chance: [shuffled]
compare: [[prototypes, pixels]]
check: [pixels]
default: prototypes
reference: pixels
"""
