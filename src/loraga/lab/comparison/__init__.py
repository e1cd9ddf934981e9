"""Many runs compared: a grid of cells, carried out by workers, gathered into results, tables, figures and one page."""
