"""Detection on a hundred and sixty photographs of COCO: from annotations to average precision."""
