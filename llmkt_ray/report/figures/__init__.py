"""Figures as lists of marks, drawn as SVG into the page and as SVG and PDF files for a paper."""
