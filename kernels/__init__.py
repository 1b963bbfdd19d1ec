"""The operators of edge4d: their schemas (`ops`), plain twins (`reference`) and native implementations (`cpu`)."""
