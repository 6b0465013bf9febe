"""From one CPU to many Ascend ranks: plans that MindSpore's own Ascend front end compiles, with no Ascend at hand."""
