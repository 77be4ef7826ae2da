"""What a callback of scikit-learn has to have, for those of the tests."""


class EpochCallback:
    """Calls `after_epoch`, which subclasses have, when an epoch ends."""

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context):
        if context.task_name == "epoch":
            self.after_epoch()
