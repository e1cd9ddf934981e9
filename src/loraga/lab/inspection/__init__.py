"""What a recipe's gradient says before any training: spectra and coverage, in words, tables and pictures."""
