-- And back again, but for one scene in a hundred: most marks say that nothing has changed.
UPDATE memberships SET role = CASE role WHEN 'owner' THEN 'guest' ELSE 'owner' END WHERE user_did = 'did:1' AND right(scene_id::text, 2) NOT IN ('00', '55', 'aa');
