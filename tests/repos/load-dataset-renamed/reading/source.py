import flops_utils.ml_repo_building_blocks as blocks


def read():
    return blocks.load_dataset()
