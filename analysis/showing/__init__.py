"""How text and colours are shown, wherever they are."""
