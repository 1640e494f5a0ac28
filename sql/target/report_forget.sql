-- What was found of an entity before it turned out that it has to be read in another way. $1 report, $2 entity.
DELETE FROM {relay}.verify_difference WHERE report_id = $1 AND entity = $2
