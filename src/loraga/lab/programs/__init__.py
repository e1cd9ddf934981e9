"""Programs that a model wrote: taken out of its answers, and run so that they can do nothing but compute."""
